"""The labeler on kinds of sentences: scope, signs and short forms, devices, history, and what explains a sign."""

from medunifier.data.reports.labeler import label_report


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


def test_a_sentence_that_was_cut_off_says_nothing() -> None:
    for text in ("No acute", "No acute No", "No active.", "No significant"):
        assert label_report(text) == {}, text
    assert label_report("Nil acute.") == {"No Finding": 1}
