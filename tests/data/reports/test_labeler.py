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
        ("Calcified nodule.", {"Lung Lesion": 1}),
        ("Massive left effusion.", {"Pleural Effusion": 1}),
        ("Hydropneumothorax.", {"Pneumothorax": 1, "Pleural Effusion": 1}),
        ("Stable congestive heart failure.", {"Edema": 1}),
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


HISTORIES = (
    "{h}: rule out pneumothorax\nFindings: The lungs are clear.\nImpression: Normal.",
    "{h}: rule out pneumothorax\n\nThe lungs are clear.",
    "{h}: rule out pneumothorax.\nThe lungs are clear.",
    "{h}: rule out pneumothorax. The lungs are clear.",
    "{h}: ?pneumothorax\nTechnique: PA.\nThe lungs are clear.",
    " {h}: rule out pneumothorax\n FINDINGS: The lungs are clear.",
    "{h}: rule out pneumothorax\n FINDINGS: The lungs are clear.",
)


def test_the_history_of_a_report_in_any_style_is_ignored() -> None:
    for form in HISTORIES:
        for header in ("Indication", "INDICATION", "Clinical details", "Reason for exam", "History"):
            text = form.format(h=header)
            assert "Pneumothorax" not in label_report(text), text
            if header != "Clinical details":
                assert label_report(text) == {"No Finding": 1}, text
    assert label_report("Large effusion.\nIMPRESSION: As above.") == {"Pleural Effusion": 1}, "text before the header"


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
    """Measured: 0.912 on 1,965 reports (uncertain counts as absent)."""
    labels = [label_report(text) for text, _ in openi]
    scores = []
    for name, headings in HEADINGS.items():
        truth = [bool(found & headings) for _, found in openi]
        predicted = [label.get(name) == 1 for label in labels]
        hits = sum(a and b for a, b in zip(truth, predicted, strict=True))
        scores.append(2 * hits / (sum(truth) + sum(predicted)))
    assert sum(scores) / len(scores) >= 0.91, dict(zip(HEADINGS, scores, strict=True))


def wrong_labels(expected: dict[str, str]) -> list[tuple[str, dict[str, int]]]:
    """Return the texts with other labels than expected: {text: "Edema 1, Fracture 0"}, "normal" for No Finding."""
    wrong = []
    for text, stated in expected.items():
        pairs = [pair.rsplit(" ", 1) for pair in stated.replace("normal", "No Finding 1").split(", ") if pair]
        labels = label_report(text)
        if labels != {name: int(value) for name, value in pairs}:
            wrong.append((text, labels))
    return wrong


def test_a_purpose_clause_is_denied_too() -> None:
    texts = {}
    for seen in ("is seen", "is identified", "is present", "is demonstrated", "is noted", ""):
        for purpose in ("to suggest", "to indicate", "that would suggest", "which might indicate", "to support"):
            texts[f"No focal consolidation {seen} {purpose} pneumonia."] = "Consolidation 0, Pneumonia 0, normal"
    for purpose in ("to account for the cough", "to explain the fever"):
        texts[f"No effusion is seen {purpose}."] = "Pleural Effusion 0, normal"
    texts["Effusion is not demonstrated to suggest heart failure."] = "Edema 0, Pleural Effusion 0, normal"
    assert not wrong_labels(texts)


def test_full_stops_of_abbreviations_end_no_sentence() -> None:
    assert not wrong_labels({
        "C.T. ratio is normal. Both lung fields are clear.": "Cardiomegaly 0, normal",
        "C.T.R. is increased.": "Cardiomegaly 1",
        "Bilateral C.P. angles are clear.": "normal",
        "R.L.L. consolidation. No effusion.": "Consolidation 1, Pleural Effusion 0",
        "L. base clear, R. base consolidated.": "Consolidation 1",
        "Consolidation on the C.T. No effusion.": "Consolidation 1, Pleural Effusion 0",
    })  # fmt: skip


def test_signs_of_notes() -> None:
    assert not wrong_labels({
        "?rib # ?pneumothorax": "Pneumothorax -1, Fracture -1",
        "# R clavicle, no ptx": "Pneumothorax 0, Fracture 1",
        "Multiple rib #s.": "Fracture 1",
        "# 7th rib": "Fracture 1",
        "No # seen.": "Fracture 0, normal",
        "Tube #8 in place.": "Support Devices 1, normal",
        "# Findings\nNo effusion.": "Pleural Effusion 0, normal",
        "Mild CM. No effusion.": "Cardiomegaly 1, Pleural Effusion 0",
        "Nodule of 2 cm.": "Lung Lesion 1",
        "Since May the nodule has grown.": "Lung Lesion 1",
        "Compared with 3 May, the effusion is larger.": "Pleural Effusion 1",
        "On 3 may be seen a nodule.": "Lung Lesion -1",
        "Atelectasis > pneumonia.": "Pneumonia -1, Atelectasis -1",
        "Basal atelectasis, right > left.": "Atelectasis 1",
        "Consolidation (+), effusion (-).": "Consolidation 1, Pleural Effusion 0",
        "Lung nodules -ve.": "Lung Lesion 0, normal",
    })  # fmt: skip


def test_dictated_punctuation() -> None:
    assert not wrong_labels({
        "Impression colon no acute disease period": "normal",
        "The lungs are clear period heart size is normal period": "Cardiomegaly 0, normal",
        "No effusion comma consolidation comma or pneumothorax full stop":
            "Consolidation 0, Pneumothorax 0, Pleural Effusion 0, normal",
        "Indication colon rule out pneumothorax period\nFindings colon large effusion period": "Pleural Effusion 1",
        "Impression colon number one edema period number two no effusion period": "Edema 1, Pleural Effusion 0",
        "Over a period of three weeks the effusion has enlarged.": "Pleural Effusion 1",
        "Gas in the colon. No effusion.": "Pleural Effusion 0, normal",
        "There is a new line. No effusion.": "Pleural Effusion 0, normal",
    })  # fmt: skip


def test_heart_failure_says_nothing_about_the_heart_size() -> None:
    for text in ("Heart failure.", "CHF.", "Congestive cardiac failure."):
        assert label_report(text) == {"Edema": 1}, text
        assert label_report(text, no_finding="chexpert") == {"Edema": 1, "Cardiomegaly": -1}, text
    assert label_report("No CHF.", no_finding="chexpert") == {"Edema": 0, "No Finding": 1}


def test_an_opacity_explained_by_an_artefact() -> None:
    for artefact in ("a nipple shadow", "skin folds", "overlapping vessels", "an artefact", "summation of shadows"):
        for finding, name in (
            ("Density", "Lung Opacity"),
            ("Nodule", "Lung Lesion"),
            ("Pneumothorax", "Pneumothorax"),
        ):
            assert label_report(f"{finding}, probably {artefact}.").get(name) == -1, (finding, artefact)
            assert label_report(f"{finding} at the base is due to {artefact}.").get(name) == 0, (finding, artefact)
    for text in ("Nodule, not a nipple shadow.", "Nodule. Nipple shadows noted."):
        assert label_report(text).get("Lung Lesion") == 1, text


def test_a_nodular_opacity_is_possibly_a_lesion() -> None:
    assert not wrong_labels({
        "Nodular opacity at the apex.": "Lung Opacity 1, Lung Lesion -1",
        "No nodular opacities.": "Lung Opacity 0, Lung Lesion 0, normal",
        "A suspicious spiculated opacity.": "Lung Opacity 1",
        "Suspicious for an opacity.": "Lung Opacity -1",
    })  # fmt: skip


def test_fluid_beside_the_pleural_space_is_an_effusion() -> None:
    for text, value in (
        ("Minimal fluid at the left base.", 1),
        ("Fluid in the minor fissure.", -1),
        ("No fluid in the fissures.", 0),
        ("Fluid-filled stomach.", None),
    ):
        assert label_report(text).get("Pleural Effusion") == value, text


def test_a_device_to_be_removed_is_present() -> None:
    for plan in (
        "must be removed",
        "needs to be removed",
        "should be withdrawn",
        "can now be removed",
        "may be removed",
    ):
        assert label_report(f"The nasogastric tube {plan}.")["Support Devices"] == 1, plan
    for text in ("Removal of the drain is advised.", "Drain is due for removal.", "The tube has been pulled back."):
        assert label_report(text)["Support Devices"] == 1, text
    assert label_report("Removal of the drain and placement of a catheter.")["Support Devices"] == 1
    assert "Support Devices" not in label_report("Tuberculous effusion.")
    for text in ("The drain has been pulled.", "S/p chest tube removal.", "No drain has been inserted."):
        assert label_report(text)["Support Devices"] == 0, text
    assert label_report("No pneumothorax after line insertion.") == {
        "Pneumothorax": 0,
        "Support Devices": 1,
        "No Finding": 1,
    }


def test_conditions_contrary_to_fact() -> None:
    assert not wrong_labels({
        "Had the effusion been larger, a drain would have been sited.": "Pleural Effusion 1, Support Devices 0",
        "A larger pneumothorax would have required a drain.": "Pneumothorax 1, Support Devices 0",
        "Had there been a pneumothorax, the drain would have moved.": "Pneumothorax 0, Support Devices 1",
        "Were it not for the pacemaker, the study would be normal.": "Support Devices 1, normal",
        "A pneumothorax would be expected to be visible.": "Pneumothorax 0, normal",
    })  # fmt: skip


def test_the_scope_of_doubt_and_denial_ends() -> None:
    assert not wrong_labels({
        "Suspicious for a tumour with distal collapse.": "Lung Lesion -1, Atelectasis 1",
        "Possible tumour with secondary consolidation.": "Lung Lesion -1, Consolidation 1",
        "Peribronchial cuffing without consolidation, in keeping with infection.":
            "Lung Opacity 1, Consolidation 0, Pneumonia 1",
        "Opacity without effusion suggests pneumonia.": "Lung Opacity 1, Pneumonia -1, Pleural Effusion 0",
        "Rather than consolidation this is collapse.": "Consolidation 0, Atelectasis 1",
        "More in keeping with oedema than with infection.": "Edema 1, Pneumonia -1",
    })  # fmt: skip


def test_a_finding_is_confirmed_or_beyond_dispute() -> None:
    for text in (
        "The suspected fracture is confirmed.", "No one would dispute the fracture.", "Fracture beyond question.",
        "The fracture has all but resolved.", "No evidence of change in the fracture.",
    ):  # fmt: skip
        assert label_report(text) == {"Fracture": 1}, text
    for text in ("No evidence against a fracture.", "Nothing to exclude a fracture.", "Doubt fracture.",
                 "Insufficient evidence for a fracture.", "Fracture is not likely.",
                 "Fractures may not be visible.", "Radiographs are insensitive for fractures."):  # fmt: skip
        assert label_report(text) == {"Fracture": -1}, text


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


# One noun phrase for each observation except No Finding.
FINDINGS = {
    "cardiomegaly": "Cardiomegaly",
    "mediastinal widening": "Enlarged Cardiomediastinum",
    "airspace opacity": "Lung Opacity",
    "air-space shadowing": "Lung Opacity",
    "lung nodule": "Lung Lesion",
    "hilar tumour": "Lung Lesion",
    "pulmonary oedema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "lobar collapse": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "rib fracture": "Fracture",
    "chest tube": "Support Devices",
}

# {value: frames}: the value of the finding in place of X.
FRAMES = {
    1: (
        "X.", "There is X.", "Left X is seen.", "X: Present.", "Persistent X.", "X, unchanged.", "X is again noted.",
        "No change in X.", "No significant interval change in the X.", "No improvement in X.", "X has not resolved.",
        "The X has not yet completely resolved.", "X has nearly resolved.", "Partially resolved X.",
        "No pericardial fluid and a small X.", "No hernia, but there is X.", "No scoliosis. X.",
        "Without change in the X.", "X without interval change.", "- No hernia\n- X", "1) No hernia 2) X",
        "No hernia\nLeft X\nNo scoliosis", "* No scoliosis\n* X", "• No scoliosis\n• X", "a) no hernia b) X",
        "No hernia; X.", "No hernia, stable X.", "X, hernia cannot be excluded.", "No hernia – X present.",
        "The hernia has resolved and there is X.", "X in keeping with the history.", "No emphysema, however X.",
        "X w/o change.", "Incomplete resolution of X.", "No decrease in X.",
        "No doubt about the X.", "No longer any doubt regarding the X.", "Undoubted X.", "X is never in doubt.",
        "Neither the X nor the hernia has changed.", "Neither hernia nor X has resolved.", "No X has grown.",
        "Neither X nor hernia is new.", "X without complete resolution.", "Without full resolution of the X.",
        "Repeat to ensure resolution of the X.", "Resolution of the X is awaited.", "X is not gone.",
        "Further clearing of the X.", "Lack of resolution of the X.", "Absence of change in the X.",
        "No X shows any change.", "Not without X.", "X is not absent.", "The patient is not free of X.",
        "The lungs are no longer clear of X.", "Neither lung is free of X.",
    ),
    0: (
        "No X.", "There is no X.", "No evidence of X.", "No e/o X.", "Nil X.", "X: None.", "X: no", "X - nil.",
        "X: Not seen.", "X: absent.", "X is not seen.", "X is not clearly identified.", "No definite X.",
        "No hernia or X.", "No hernia, scoliosis, or X.", "No hernia, large X or scoliosis.", "Neither hernia nor X.",
        "Without X.", "w/o X.", "Negative for X.", "X has resolved.", "Resolved X.", "X is no longer seen.",
        "Absence of X.", "No hernia or X is seen.", "X and hernia are not seen.", "X is absent.",
        "X has been excluded.",
        "No signs of acute X.", "There isn't any X.", "X is gone.", "X has vanished.", "X has not recurred.",
        "No X has developed.", "X is felt to be excluded.", "X is thought unlikely.", "Complete clearing of the X.",
        "Scoliosis mimicking X.", "Hernia rather than X.",
    ),
    -1: (
        "Possible X.", "Probable X.", "?X.", "Scoliosis ?X.", "X?", "Query X.", "R/O X.", "CT to rule out X.",
        "Repeat to exclude X.", "Cannot exclude X.", "X cannot be excluded.", "X is not entirely excluded.",
        "X, if any, is small.", "X is small, if any.", "Evaluate for X.", "Suspicious for X.", "X is suspected.",
        "X versus hernia.", "Hernia vs. X.", "May represent X.", "X is possible.", "Suspected X.", "X likely.",
        "X: possible.", "X can't be ruled out.", "Scoliosis, possibly X.", "No hernia, possible X.",
        "X should be considered.", "Concern for X.", "X is less likely.", "X is less likely than hernia.",
        "Hernia is more likely than X.", "Hernia is favoured over X.", "Might be hernia rather than X.",
        "X is difficult to assess.", "It is unclear whether X has resolved.", "Uncertain if there is X.",
    ),
}  # fmt: skip


def test_every_finding_in_every_frame() -> None:
    wrong = []
    for noun, observation in FINDINGS.items():
        for value, frames in FRAMES.items():
            for frame in frames:
                text = frame.replace("X", noun)
                labels = label_report(text)
                # Other text of the frame has no label; "No Finding" may only accompany a denial or a device.
                if labels.get(observation) != value or (
                    "No Finding" in labels and value != 0 and observation != "Support Devices"
                ):
                    wrong.append((text, value, labels))
    assert len(FINDINGS) >= 14 and sum(map(len, FRAMES.values())) >= 60
    assert not wrong


def test_removal_concerns_devices_only() -> None:
    labels = label_report("Removal of the chest tube with a small apical pneumothorax remaining.")
    assert labels == {"Pneumothorax": 1, "Support Devices": 0}
    for text in ("Chest tube removed. No pneumothorax.", "The patient has been extubated."):
        assert label_report(text)["Support Devices"] == 0, text


def test_a_denied_fault_of_a_device_leaves_the_device() -> None:
    for text in ("No fracture of the pacemaker lead.", "No kinking of the catheter.", "No malposition of the tube."):
        assert label_report(text)["Support Devices"] == 1, text
    for text in ("No evidence of the pacemaker.", "No pneumothorax or catheter.", "Device: No."):
        assert label_report(text)["Support Devices"] == 0, text


def test_removed_lines_and_leads_are_devices() -> None:
    for text in ("All lines have been removed.", "Leads removed.", "The wires were removed."):
        assert label_report(text)["Support Devices"] == 0, text


def test_an_incompletely_assessed_device_is_present() -> None:
    assert label_report("Humeral prosthesis, incompletely evaluated.")["Support Devices"] == 1


def test_a_blunted_costophrenic_angle_is_an_uncertain_effusion_unless_the_report_decides() -> None:
    for text, value in (
        ("Blunting of the left costophrenic angle.", -1),
        ("CP angles are not blunted.", 0),
        ("Blunted left CP angle. No pleural effusion.", 0),
        ("Blunted left CP angle. Small effusion.", 1),
    ):
        assert label_report(text)["Pleural Effusion"] == value, text


def test_thickening_is_pleural_only_after_the_pleura() -> None:
    for text, value in (
        ("Pleural surfaces show no thickening.", 0),
        ("CP angle: ?thickening", -1),
        ("Pleural effusion and plaques.", 1),
        ("Pleural effusion with septal thickening.", None),
        ("Bronchial wall thickening.", None),
    ):
        assert label_report(text).get("Pleural Other") == value, text


def test_failure_is_of_the_heart_unless_another_organ_is_named() -> None:
    for text, value in (("No failure.", 0), ("In failure.", 1), ("Renal failure.", None), ("Failure to wean.", None)):
        assert label_report(text).get("Edema") == value, text


def test_short_forms() -> None:
    assert label_report("No ptx, pl eff, consol, PNA, atel or fx.") == {
        **dict.fromkeys(("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"), 0),
        "Fracture": 0,
        "No Finding": 1,
    }


def test_longer_names_of_observations() -> None:
    for text, observation in (
        ("Loculated fluid on the left.", "Pleural Effusion"),
        ("Abnormal mediastinal contour.", "Enlarged Cardiomediastinum"),
        ("Loss of the aortic knuckle.", "Enlarged Cardiomediastinum"),
        ("Focal lesion in the left lung.", "Lung Lesion"),
        ("Bony injury.", "Fracture"),
        ("Circulatory overload.", "Edema"),
    ):
        assert label_report(text).get(observation) == 1, text


def test_qualified_fractures_are_fractures() -> None:
    for text in ("Non-displaced rib fracture.", "Undisplaced rib fracture.", "Fracture, not displaced."):
        assert label_report(text) == {"Fracture": 1}, text
    assert label_report("No displaced rib fracture.")["Fracture"] == 0


ABNORMAL = (
    "Left costophrenic angle is blunted.", "TB cannot be excluded.", "Old granulomatous disease.", "Tortuous aorta.",
    "Raised right hemidiaphragm.", "Free air under the diaphragm.", "Hyperinflated lungs.", "Low lung volumes.",
    "Trachea is deviated to the right.", "The lungs are not clear.", "Suspicious area in the right upper zone.",
    "Bulky left hilum.", "Degenerative changes of the spine.", "Unfolded aorta.", "Prominent pulmonary vasculature.",
    "Upper lobe blood diversion.", "Fibrotic strands in the left apex.", "Bronchiectasis.", "Cervical rib.",
    "Surgical emphysema.", "Calcified granuloma.", "Abnormal chest.", "Air-fluid level behind the heart.",
    "The left hemidiaphragm is not seen.", "Qwxyz in the left lung.", "Vascular congestion.", "Mediastinal shift.",
    "Blunted CP angle, no effusion.", "Heart size is difficult to assess.", "Renal failure.", "Failure of treatment.",
    "Bronchial wall thickening.", "The left lung has not re-expanded.", "The lungs are no longer clear.",
    "Neither lung is clear.", "Neither costophrenic angle is sharp.", "No lung is normal.",
    "No part of the left lung is aerated.", "Not all of the right lung has re-expanded.", "No zone is clear.",
    "No segment of the left lung remains aerated.", "Left lung not assessable.", "Cardiac apex is elevated.",
)  # fmt: skip


def test_an_abnormality_excludes_no_finding() -> None:
    for text in ABNORMAL:
        for report in (text, f"No pneumothorax. {text}", f"{text} The lungs are otherwise clear."):
            assert "No Finding" not in label_report(report), report


NORMAL = (
    "Normal chest radiograph.", "NAD.", "The lungs are clear.", "No acute cardiopulmonary abnormality.",
    "Nil acute. Heart size normal.", "Both CP angles are clear.", "Cardiac and mediastinal contours are normal.",
    "Trachea is central. Hila are normal.", "No active lung disease.", "Bony cage is normal.", "ICD in situ.",
    "Pneumothorax: None.\nPleural effusion: None.", "No tumour or oedema is visualised.",
    "Heart: normal\nLungs: clear\nPleura: no effusion", "Lungs are clear. Pacemaker in place.",
    "Nil acute.", "Nothing active.", "No acute findings.", "Lungs fully expanded.", "The right lung has re-expanded.",
    "Both costophrenic recesses are clear.", "Normal sized heart.", "Pleural surfaces are smooth.", "Lines removed.",
    "Pt is afebrile. No pneumonia.", "Both domes of diaphragm are normally placed.",
    "Normal cardiothymic silhouette.",
    "Vertebral body heights are maintained.", "Bones are normal in density.", "Retrocardiac area clear.",
)  # fmt: skip


def test_normal_reports_are_no_finding() -> None:
    for text in NORMAL:
        assert label_report(text).get("No Finding") == 1, text


def test_text_that_states_nothing_normal_is_not_no_finding() -> None:
    report = "No pneumothorax. The lungs are clear."
    for text in ("Stable chest.", "PA and lateral views.", report.encode("utf-16").decode("latin-1"),
                 report.encode("utf-16-le").decode("utf-16-be"), report.replace("m", "\ufffd")):  # fmt: skip
        assert "No Finding" not in label_report(text), text


def test_chexperts_rule_gives_no_finding_unless_an_observation_is_stated() -> None:
    assert label_report("Tortuous aorta.", no_finding="chexpert") == {"No Finding": 1}
    assert label_report("Tortuous aorta.") == {}
    assert "No Finding" not in label_report("Edema.", no_finding="chexpert")


def test_wrapped_lines_are_one_sentence() -> None:
    text = (
        "The lungs are well expanded and there is no evidence of a focal\n"
        "consolidation, a pneumothorax, a nodule or of an acute\npleural effusion."
    )
    assert set(label_report(text).values()) == {0, 1} and label_report(text)["No Finding"] == 1


def test_no_finding_against_openi_headings(openi: list[tuple[str, set[str]]]) -> None:
    """Measured: 0.924; 0.703 by chexpert-labeler's rule."""
    truth = ["normal" in found for _, found in openi]
    predicted = ["No Finding" in label_report(text) for text, _ in openi]
    hits = sum(a and b for a, b in zip(truth, predicted, strict=True))
    assert 2 * hits / (sum(truth) + sum(predicted)) >= 0.91
