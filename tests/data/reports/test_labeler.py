"""The labeler on difficult sentences, the published examples of chexpert-labeler, and Open-I's MeSH headings."""

import tarfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS
from tests.files import read_csv


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pneumothorax or pleural effusion.", {"Pneumothorax": 0, "Pleural Effusion": 0}),
        ("Small left effusion without pneumothorax.", {"Pleural Effusion": 1, "Pneumothorax": 0}),
        ("No pneumothorax, but there is a small effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("No focal opacity to suggest pneumonia.", {"Lung Opacity": 0, "Pneumonia": 0}),
        ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
        ("Cannot exclude pneumonia.", {"Pneumonia": -1}),
        ("Atelectasis versus consolidation.", {"Atelectasis": -1, "Consolidation": -1}),
        ("The effusion has resolved.", {"Pleural Effusion": 0}),
        ("A pneumothorax is not seen.", {"Pneumothorax": 0}),
        ("The lungs are clear of consolidation.", {"Consolidation": 0}),
        ("No change in the left effusion.", {"Pleural Effusion": 1}),
        ("Pericardial effusion.", {}),
        ("Calcified nodule.", {}),
        ("Massive left effusion.", {"Pleural Effusion": 1}),
        ("Hydropneumothorax.", {"Pneumothorax": 1, "Pleural Effusion": 1}),
        ("Stable congestive heart failure.", {"Edema": 1, "Cardiomegaly": -1}),
        ("No heart failure.", {"Edema": 0}),
        ("The heart is not enlarged.", {"Cardiomegaly": 0}),
        ("The heart is not significantly enlarged.", {"Cardiomegaly": 0}),
        ("The cardiac silhouette is mildly enlarged.", {"Cardiomegaly": 1}),
        ("Enlarged cardiac silhouette.", {"Cardiomegaly": 1}),
        (
            "Heart and mediastinum are within normal limits.",
            {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0},
        ),
        ("The heart is seen.", {}),
        ("Resolved left effusion, stable nodule.", {"Pleural Effusion": 0, "Lung Lesion": 1}),
        ("The effusion resolved and a nodule is seen.", {"Pleural Effusion": 0, "Lung Lesion": 1}),
        ("Densities not seen on the previous exam.", {"Lung Opacity": 1}),
        ("The nodule is not well-seen on today's study.", {"Lung Lesion": 0}),
        ("Malignancy cannot be confidently excluded.", {"Lung Lesion": -1}),
        ("Evaluation for pleural fluid is limited.", {"Pleural Effusion": -1}),
        ("CT is more sensitive in detecting nodules.", {"Lung Lesion": 0}),
        ("ET tube in place. PICC line has been removed.", {"Support Devices": 1}),
        ("The catheter has been removed.", {"Support Devices": 0}),
        ("Atelectasis/consolidation is possible.", {"Atelectasis": -1, "Consolidation": -1}),
    ],
)
def test_labels_of_single_sentences(text: str, expected: dict[str, int]) -> None:
    found = label_report(text)
    found.pop("No Finding", None)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Possible effusion. No effusion.", -1),
        ("No effusion. Left effusion.", 1),
        ("Possible effusion. Left effusion.", 1),
        ("No effusion. No effusion.", 0),
    ],
)
def test_merging_of_several_mentions(text: str, value: int) -> None:
    assert label_report(text)["Pleural Effusion"] == value


def test_no_finding_requires_the_absence_of_disease() -> None:
    assert label_report("Lungs are clear. Pacemaker in place.")["No Finding"] == 1
    assert "No Finding" not in label_report("Possible pneumonia.")
    assert "No Finding" not in label_report("Severe emphysema. Lungs are otherwise clear.")
    assert label_report("No scoliosis.")["No Finding"] == 1
    assert label_report("") == label_report(" \n ") == {}


def test_the_indication_is_ignored() -> None:
    text = "FINAL\n INDICATION: rule out pneumothorax\n \n FINDINGS: Clear.\n \n IMPRESSION: Normal.\n"
    assert label_report(text) == {"No Finding": 1}


def test_published_examples(shared_data: Callable[[str], Path]) -> None:
    """The four sample reports of stanfordmlgroup/chexpert-labeler, with its labels."""
    rows = read_csv(shared_data("chexpert-labeler/labeled_reports.csv"))
    assert len(rows) == 4
    for row in rows:
        text = row.pop("Reports")
        assert label_report(text) == {name: int(float(value)) for name, value in row.items() if value}


# Observations and the equivalent MeSH headings ("major") of Open-I.
HEADINGS = {
    "Cardiomegaly": {"Cardiomegaly"},
    "Pleural Effusion": {"Pleural Effusion"},
    "Atelectasis": {"Pulmonary Atelectasis"},
    "Pneumonia": {"Pneumonia"},
    "Edema": {"Pulmonary Edema"},
    "Fracture": {"Fractures, Bone"},
    "Consolidation": {"Consolidation"},
    "Lung Opacity": {"Opacity", "Airspace Disease", "Infiltrate", "Density"},
    "Lung Lesion": {"Nodule", "Mass"},
}


@pytest.fixture
def openi(shared_data: Callable[[str], Path]) -> list[tuple[str, set[str]]]:
    """Return (findings and impression, headings) of Open-I's odd-numbered reports."""
    return read_openi(shared_data("openi/ecgen-radiology-odd.tgz"))


@lru_cache
def read_openi(path: Path) -> list[tuple[str, set[str]]]:
    studies = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                root = ElementTree.parse(archive.extractfile(member)).getroot()  # type: ignore[arg-type]
                parts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
                text = f"{parts.get('FINDINGS', '')}\n\n{parts.get('IMPRESSION', '')}"
                headings = {(node.text or "").split("/")[0].strip() for node in root.iter("major")}
                if text.strip():
                    studies.append((text, headings))
    return studies


def test_mean_f1_against_openi_headings(openi: list[tuple[str, set[str]]]) -> None:
    """Measured: 0.897 on 1,965 reports (uncertain counts as absent)."""
    labels = [label_report(text) for text, _ in openi]
    scores = []
    for name, headings in HEADINGS.items():
        truth = [bool(found & headings) for _, found in openi]
        predicted = [label.get(name) == 1 for label in labels]
        hits = sum(a and b for a, b in zip(truth, predicted, strict=True))
        scores.append(2 * hits / (sum(truth) + sum(predicted)))
    assert sum(scores) / len(scores) >= 0.89, dict(zip(HEADINGS, scores, strict=True))


WORDS = [
    "no",
    "effusion",
    "possible",
    "heart",
    "enlarged",
    "normal",
    ",",
    ".",
    "but",
    "versus",
    "not seen",
    "mass",
    "\n",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join))
def test_invariants_of_labels_on_random_text(text: str) -> None:
    labels = label_report(text)
    assert set(labels.values()) <= {1, 0, -1}
    assert list(labels) == [name for name in OBSERVATIONS if name in labels]
    stated = any(value != 0 for name, value in labels.items() if name not in ("No Finding", "Support Devices"))
    assert not (stated and "No Finding" in labels)
    assert label_report(text.upper()) == labels
