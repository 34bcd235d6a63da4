"""`Phantom`: studies are pure functions of their arguments, with reports in MIMIC's format that match the labels."""

import re

import numpy as np
import pytest

from medunifier.data.phantom import Phantom
from medunifier.data.phantom.report import write_report
from medunifier.data.phantom.state import FINDINGS, slot, study_state
from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.reports.sections import split_sections, training_text


def reports(seed: int, count: int) -> list:
    """Return (state, report) pairs without rendering images, which takes most of the time."""
    pairs = []
    for index in range(count):
        entry = slot(seed, index)
        state = study_state(seed, entry.patient, entry.visit, FINDINGS)
        pairs.append((state, write_report(state, np.random.default_rng((seed, index)))))
    return pairs


def test_a_study_is_a_pure_function_of_size_seed_and_index() -> None:
    one, other = Phantom(32, 5), Phantom(32, 5)
    first = one.study(7)
    other.study(3)
    again = other.study(7)
    assert np.array_equal(first.images[0], again.images[0])
    assert (first.report, first.labels, first.study_id) == (again.report, again.labels, again.study_id)
    large = Phantom(48, 5).study(7)
    assert (large.report, large.labels, large.state, large.patient_id) == (
        first.report,
        first.labels,
        first.state,
        first.patient_id,
    )
    assert Phantom(32, 6).study(7).report != first.report


def test_shapes_and_id_formats_of_a_study() -> None:
    study = Phantom(40, 0).study(11)
    assert [image.shape for image in study.images] == [(40, 40)] and len(study.views) == len(study.dicom_ids) == 1
    assert re.fullmatch(r"1\d{7}", study.patient_id) and re.fullmatch(r"5\d{7}", study.study_id)
    assert re.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}", study.dicom_ids[0])
    assert set(study.labels) <= set(OBSERVATIONS) and set(study.labels.values()) <= {1, 0, -1}


def test_ids_do_not_collide() -> None:
    phantom = Phantom(32, 2)
    studies = [phantom.study(index) for index in range(60)]
    assert len({study.study_id for study in studies}) == 60
    assert len({study.patient_id for study in studies}) == len({slot(2, index).patient for index in range(60)})


@pytest.mark.parametrize(("size", "seed"), [(31, 0), (64, -1)])
def test_out_of_range_arguments_are_refused(size: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must"):
        Phantom(size, seed)
    with pytest.raises(IndexError):
        Phantom(32).study(-1)


def test_the_labeler_extracts_the_labels_of_every_report() -> None:
    """Phrases and labeler rules are both part of this project, so agreement must be exact."""
    for _, report in reports(4, 800):
        assert label_report(report.text, "chexpert") == report.labels, report.text


def test_labels_match_the_state() -> None:
    for state, report in reports(1, 300):
        assert (report.labels["Cardiomegaly"] == 1) == bool(state.heart)
        assert (report.labels["Pleural Effusion"] == 1) == bool(state.effusions)
        assert (report.labels["Pneumothorax"] == 1) == bool(state.pneumothorax)
        assert (report.labels.get("Lung Lesion") == 1) == bool(state.nodule)
        assert report.labels.get("Edema", 0) == {0: 0, 1: -1, 2: 1}[state.edema]
        assert (report.labels.get("Support Devices") == 1) == bool(state.devices)
        assert ("No Finding" in report.labels) == state.is_normal


def test_mimics_page() -> None:
    for _, report in reports(2, 100):
        title, *lines = report.text.splitlines()
        assert title.strip() == "FINAL REPORT" and report.text.endswith("\n")
        assert all(line.startswith(" ") and len(line) <= 79 for line in lines)
        assert all(line == " " or line.strip() for line in lines)
        sections = split_sections(report.text)
        assert list(sections) == ["preamble", "examination", "indication", "comparison", "findings", "impression"]
        assert sections["impression"].endswith(".") and sections["findings"].endswith(".")


def test_reports_are_short_and_varied_with_a_small_vocabulary() -> None:
    texts = [training_text(split_sections(report.text)) for _, report in reports(0, 400)]
    lengths = [len(text.split()) for text in texts]
    assert 25 <= np.mean(lengths) <= 45 and max(lengths) <= 90
    assert len(set(texts[:200])) >= 180
    assert len(set(re.findall("[a-z]+", " ".join(texts).lower()))) <= 150


def test_reports_state_side_size_and_zone() -> None:
    for state, report in reports(3, 300):
        findings = " ".join(split_sections(report.text)["findings"].lower().split())
        if state.nodule:
            assert f"{state.nodule.side} {state.nodule.zone}" in findings
        if len(state.effusions) == 1:
            lesion = state.effusions[0]
            assert f"{('small', 'moderate', 'large')[lesion.size]} {lesion.side} pleural effusion" in findings


def test_only_the_selected_findings_occur_and_unknown_ones_are_refused():
    phantom = Phantom(size=32, findings=("effusion", "nodule"))
    stated = {name for index in range(60) for name, value in phantom.study(index).labels.items() if value == 1}
    assert stated == {"Pleural Effusion", "Lung Lesion", "No Finding"}
    with pytest.raises(ValueError, match="unknown findings measles"):
        Phantom(findings=("measles",))
    with pytest.raises(ValueError, match="besides devices"):
        Phantom(findings=("devices",))


def test_a_fraction_of_the_upright_studies_has_a_lateral_view():
    plain, both = Phantom(32, 1), Phantom(32, 1, lateral_fraction=0.5)
    upright = lateral = 0
    for index in range(120):
        study, frontal = both.study(index), plain.study(index)
        assert np.array_equal(study.images[0], frontal.images[0]) and study.labels == frontal.labels
        assert len(study.images) == len(study.views) == len(set(study.dicom_ids))
        assert study.views in (["PA"], ["AP"], ["PA", "LATERAL"]) and frontal.views == study.views[:1]
        assert ("PA AND LAT" in study.report) == ("LATERAL" in study.views)
        upright += study.views[0] == "PA"
        lateral += len(study.views) == 2
    assert 0.3 < lateral / upright < 0.7
    with pytest.raises(ValueError, match="lateral_fraction"):
        Phantom(lateral_fraction=1.5)
