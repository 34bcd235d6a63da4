"""Interval change: computed from two states, and stated in reports so that the labeler extracts it."""

from collections import Counter
from dataclasses import replace

import numpy as np

from medunifier.data.phantom import Phantom
from medunifier.data.phantom.change import Change, changes
from medunifier.data.phantom.report import write_report
from medunifier.data.phantom.state import FINDINGS, Lesion, slot, study_state
from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.sections import split_sections
from tests.data.phantom.rendering.test_frontal import PLAIN


def follow_ups(seed: int, count: int) -> list:
    """Return (prior state, state, report) of the studies that have a prior study."""
    studies = []
    for index in range(count):
        entry = slot(seed, index)
        if entry.visit:
            prior, state = (
                study_state(seed, entry.patient, visit, FINDINGS) for visit in (entry.visit - 1, entry.visit)
            )
            rng = np.random.default_rng((seed, index))
            studies.append((prior, state, write_report(state, rng, prior=prior, history=True)))
    return studies


def test_changes_between_two_states() -> None:
    left, right = Lesion("left", 1), Lesion("right", 1)
    wet = replace(PLAIN, effusions=(left,))
    assert changes(PLAIN, wet)["effusions"] == Change("new", ("left",))
    assert changes(wet, PLAIN)["effusions"] == Change(None, (), ("left",))
    assert changes(wet, wet)["effusions"] == Change("unchanged")
    assert changes(wet, replace(PLAIN, effusions=(Lesion("left", 2),)))["effusions"] == Change("increased")
    assert changes(wet, replace(PLAIN, effusions=(left, right)))["effusions"] == Change("partly new", ("right",))
    moved = changes(
        replace(PLAIN, nodule=Lesion("left", 0, "upper")), replace(PLAIN, nodule=Lesion("left", 0, "mid"))
    )
    assert moved["nodule"] == Change("new", (("left", "mid"),), (("left", "upper"),))
    assert changes(replace(PLAIN, heart=3), replace(PLAIN, heart=2))["heart"] == Change("decreased")


def test_the_labeler_extracts_the_labels_of_every_comparison() -> None:
    for _, _, report in follow_ups(4, 1500):
        assert label_report(report.text, "chexpert") == report.labels, report.text


def test_reports_state_new_unchanged_increased_and_resolved_findings() -> None:
    stated: Counter[str] = Counter()
    for prior, state, report in follow_ups(7, 2500):
        text = " ".join(report.text.split()).lower()
        course = changes(prior, state)["nodule"]
        if course.course and report.labels["Lung Lesion"] == 1:
            assert f"{state.nodule.side} {state.nodule.zone}" in text
            words = {"new": "new", "unchanged": "unchanged", "increased": "increased", "decreased": "decreased"}
            impression = split_sections(report.text)["impression"].lower()
            assert words[course.course] in impression
            stated[course.course] += 1
        if not course.course and course.resolved_at:
            assert report.labels["Lung Lesion"] == 0 and "nodule" in text
            stated["resolved"] += 1
        if report.labels.get("Lung Lesion") == -1:
            assert state.nodule.size == 0 and "possible" in text
            stated["uncertain"] += 1
    assert set(stated) == {"new", "unchanged", "increased", "decreased", "resolved", "uncertain"}


def test_history_changes_the_reports_of_later_visits_and_no_image() -> None:
    plain, with_history = Phantom(32, 5), Phantom(32, 5, history=True)
    first = changed = 0
    for index in range(40):
        expected, study = plain.study(index), with_history.study(index)
        assert np.array_equal(expected.images[0], study.images[0]) and expected.state == study.state
        comparison = split_sections(study.report)["comparison"].strip()
        if slot(5, index).visit:
            assert study.prior is not None and comparison == "Chest radiograph ___."
            changed += expected.report != study.report
        else:
            assert study.prior is None and comparison == "None." and expected.labels == study.labels
            first += 1
    assert first and changed > 8
