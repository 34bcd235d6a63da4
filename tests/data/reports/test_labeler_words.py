"""The labeler on misspellings, ratios, earlier dates, reasons, history, and places outside the lung."""

from medunifier.data.reports.rules import cues, findings
from medunifier.data.reports.rules.sentences import fold, words
from medunifier.data.reports.rules.vocabulary import INTERPOSED, NEUTRAL, OFTEN_MISSPELT
from tests.data.reports.test_labeler_kinds import wrong_labels


def test_misspelt_terms_are_read() -> None:
    assert not wrong_labels({
        "No pneumothorx or plueral effusion.": "Pneumothorax 0, Pleural Effusion 0, normal",
        "No pnuemothorax, pleural efussion or consoldation.":
            "Consolidation 0, Pneumothorax 0, Pleural Effusion 0, normal",
        "Rt lower lobe consolidtion.": "Consolidation 1",
        "Left basal atelctasis.": "Atelectasis 1",
        "Cannot exclude early interstitial odema.": "Edema -1",
        "Fracure of the left clavicle.": "Fracture 1",
    })  # fmt: skip


def test_no_known_word_is_corrected_to_another() -> None:
    tables = [*cues.NEGATION_BEFORE, *cues.UNCERTAINTY_BEFORE, *findings.HARMLESS, *findings.OTHER_DISEASE]
    tables += [name for names in findings.MENTIONS.values() for name in names]
    known = {
        word for phrase in tables for word in phrase.replace("{", " ").replace("}", " ").replace("|", " ").split()
    }
    changed = set()
    for word in {word.removesuffix("*") for word in known} | NEUTRAL | INTERPOSED:
        folded = fold(word)[-1]
        if folded in OFTEN_MISSPELT and folded[:5] != word[:5]:
            changed.add((word, folded))
    assert not changed
    for word in ("pleurae", "pneumonic", "infusion", "diffusion", "capacity", "structure", "interstitium"):
        assert words(word) == [word]


def test_a_form_with_one_answer_a_line() -> None:
    assert not wrong_labels({
        "Pneumonia: No\nEffusion: No\nEdema: No": "Edema 0, Pneumonia 0, Pleural Effusion 0, normal",
        "Cardiomegaly: no\nEffusion: yes\nPneumothorax: no": "Cardiomegaly 0, Pleural Effusion 1, Pneumothorax 0",
        "Consolidation - No\nNodule - No\nFracture - Yes": "Consolidation 0, Lung Lesion 0, Fracture 1",
        "There is no\nconsolidation.": "Consolidation 0, normal",
    })  # fmt: skip


def test_a_cardiothoracic_ratio_is_compared_with_one_half() -> None:
    assert not wrong_labels({
        "Cardiothoracic ratio is 0.62.": "Cardiomegaly 1",
        "CTR = 58 %.": "Cardiomegaly 1",
        "The cardiothoracic ratio measures 45%.": "Cardiomegaly 0, normal",
        "CTR 0.48, no effusion.": "Cardiomegaly 0, Pleural Effusion 0, normal",
    })  # fmt: skip


def test_what_was_not_present_earlier_is_new() -> None:
    assert not wrong_labels({
        "8 mm nodule left upper zone, not present in 2021. CT thorax advised.": "Lung Lesion 1",
        "Left basal consolidation which was not present on 12/03/2021.": "Consolidation 1",
        "Small right effusion, not there six months ago.": "Pleural Effusion 1",
        "Mass at the right hilum not seen in March 2020.": "Lung Lesion 1",
        "Cardiomegaly, not previously evident.": "Cardiomegaly 1",
        "Consolidation, absent on the prior study.": "Consolidation 1",
        "Consolidation, previously absent.": "Consolidation 1",
        "Formerly normal heart is now enlarged.": "Cardiomegaly 1",
        "Effusion not seen yesterday.": "Pleural Effusion 1",
        "Nodule not recognised at the time of the earlier study.": "Lung Lesion 1",
        "Left base opacity not well seen on the lateral view.": "Lung Opacity 1",
        "No pneumonia last year, now right basal consolidation.": "Consolidation 1, Pneumonia 0",
        "No pneumothorax in 2020.": "Pneumothorax 0, normal",
    })  # fmt: skip


def test_short_forms_of_the_heart() -> None:
    assert not wrong_labels({
        "Ht enlarged. Sm R eff.": "Cardiomegaly 1, Pleural Effusion 1",
        "Cor: enlarged. Pulm: clear.": "Cardiomegaly 1",
        "Cor normal, no eff.": "Cardiomegaly 0, Pleural Effusion 0, normal",
    })  # fmt: skip


def test_widths_of_the_mediastinum() -> None:
    assert not wrong_labels({
        "Mediastinum slightly wide.": "Enlarged Cardiomediastinum 1",
        "Mediastinum looks wide and aortic injury cannot be excluded.": "Enlarged Cardiomediastinum 1",
        "Mediastinum is not wide.": "Enlarged Cardiomediastinum 0, normal",
        "2 cm wide nodule in the right lung.": "Lung Lesion 1",
        "Right paratracheal stripe is thickened.": "Enlarged Cardiomediastinum 1",
        "Widening of the right paratracheal stripe.": "Enlarged Cardiomediastinum 1",
    })  # fmt: skip


def test_what_projection_explains_is_not_real() -> None:
    assert not wrong_labels({
        "The apparent widening of the mediastinum is projectional.": "Enlarged Cardiomediastinum 0, normal",
        "Apparent cardiomegaly, probably positional.": "Cardiomegaly -1",
        "The basal atelectasis is positional.": "Atelectasis 1",
        "A retrocardiac opacity could be projectional or a mass.": "Lung Opacity 1, Lung Lesion -1",
        "Nodular opacity over the fifth rib may be a nipple shadow.": "Lung Opacity -1, Lung Lesion -1",
    })  # fmt: skip


def test_the_reason_of_a_limitation_is_stated() -> None:
    assert not wrong_labels({
        "Heart size cannot be assessed owing to the adjacent left effusion.": "Pleural Effusion 1",
        "The left hemidiaphragm cannot be evaluated because of the effusion.": "Pleural Effusion 1",
        "Left heart border is not seen due to consolidation.": "Consolidation 1",
        "No consolidation due to infection.": "Consolidation 0, Pneumonia 0, normal",
    })  # fmt: skip


def test_a_treated_disease_is_history() -> None:
    assert not wrong_labels({
        "Previous left upper lobectomy for carcinoma, no recurrence.": "",
        "Right mastectomy for breast cancer. No effusion.": "Pleural Effusion 0",
        "Wedge resection of a nodule in 2018.": "",
        "Treated lung cancer with a new right effusion.": "Pleural Effusion 1",
        "Chemotherapy for lymphoma; new mediastinal mass.": "Lung Lesion 1",
    })  # fmt: skip


def test_a_mass_outside_the_chest_is_no_lesion_of_the_lung() -> None:
    assert not wrong_labels({
        "Soft tissue mass in the left supraclavicular fossa. No lung lesion.": "Lung Lesion 0",
        "Thyroid mass displacing the trachea.": "",
        "Nodule in the right breast.": "",
        "Breast mass with multiple lung nodules.": "Lung Lesion 1",
        "Mass in the right lung invading the chest wall.": "Lung Lesion 1",
    })  # fmt: skip


def test_a_lesion_in_the_lung() -> None:
    assert not wrong_labels({
        "Rounded lesion in the right mid zone.": "Lung Lesion 1",
        "Hilar lesion on the left.": "Lung Lesion 1",
        "No bony lesion.": "normal",
        "Lytic lesion in the left fifth rib.": "",
    })  # fmt: skip


def test_the_heart_is_larger() -> None:
    assert not wrong_labels({
        "The heart is larger than before.": "Cardiomegaly 1",
        "Increased cardiothoracic ratio.": "Cardiomegaly 1",
        "The effusion is no larger than before.": "Pleural Effusion 1",
    })  # fmt: skip


def test_re_expansion_ends_a_collapse_unless_partial() -> None:
    assert not wrong_labels({
        "Re-expansion of the previously collapsed left lower lobe.": "",
        "Partial re-expansion of the collapsed left lung.": "Atelectasis 1",
        "Re-expansion of the lung with a small residual pneumothorax.": "Pneumothorax 1",
    })  # fmt: skip


def test_a_broken_device_is_no_fracture() -> None:
    assert not wrong_labels({
        "Fracture of the right ventricular pacing lead near the costoclavicular ligament.": "Support Devices 1",
        "Fracture through the port catheter.": "Support Devices 1",
        "Lead fracture.": "",
        "One of the spinal rods is fractured.": "Support Devices 1",
        "Fracture of the right clavicle with plate fixation.": "Fracture 1, Support Devices 1",
        "Chest tube in place. Fracture of the sixth rib.": "Fracture 1, Support Devices 1",
    })  # fmt: skip


def test_resolution_to_come_and_removal_since_the_prior_study() -> None:
    assert not wrong_labels({
        "Follow up to resolution of pneumonia.": "Pneumonia 1",
        "Follow-up to resolution recommended for the pneumonia.": "Pneumonia 1",
        "Resolution of pneumonia should be documented.": "Pneumonia 1",
        "No sign that the pneumonia is clearing.": "Pneumonia 1",
        "Repeat radiograph for complete resolution of the consolidation.": "Consolidation 1",
        "Extubated since the prior study.": "Support Devices 0, normal",
        "Drain removed prior to this study.": "Support Devices 1, normal",
    })  # fmt: skip


def test_changes_are_abnormal_unless_denied() -> None:
    assert not wrong_labels({
        "Clear lungs. Age-related changes of the spine.": "",
        "Mild changes at the left base. No effusion.": "Pleural Effusion 0",
        "No active changes in the lungs.": "normal",
        "No effusion. No interval changes.": "Pleural Effusion 0, normal",
    })  # fmt: skip


def test_exceptions_are_present() -> None:
    assert not wrong_labels({
        "No finding besides a calcified nodule.": "Lung Lesion 1",
        "No abnormality beyond the known effusion.": "Pleural Effusion 1",
        "Excluding the known nodule, the lungs are clear.": "Lung Lesion 1",
        "Clear save for a left basal nodule.": "Lung Lesion 1",
    })  # fmt: skip


def test_a_finding_of_the_other_side_without_its_name_excludes_no_finding() -> None:
    assert not wrong_labels({
        "No effusion on the left. Moderate on the right.": "Pleural Effusion 0",
        "No effusion on the right but small on the left.": "Pleural Effusion 0",
        "No significant effusion on the left, small on the right.": "Pleural Effusion 0",
    })  # fmt: skip


def test_hardware_is_a_device() -> None:
    for text in ("Harrington rods.", "Rib plating.", "Intramedullary nail in the left humerus.",
                 "Metallic plate across the clavicle.", "Shoulder replacement.",
                 "Mediastinal clips, intact. CABG."):  # fmt: skip
        assert not wrong_labels({text: "Support Devices 1, normal"})


def test_names_of_findings_in_other_words() -> None:
    for name, texts in {
        "Pneumothorax": ("Rim of pleural air at the apex.", "Air in the left pleural space.",
                         "Visceral pleural line seen."),
        "Pleural Other": ("Symmetrical apical caps.", "Left apical pleural cap.", "Apical capping."),
        "Fracture": ("Osteoporotic wedge compression of D11.", "Vertebral compression of T8."),
        "Lung Lesion": ("SOL right hilum.", "SPN left upper lobe."),
        "Pneumonia": ("PJP.", "Pneumocystis in both lungs."),
        "Lung Opacity": ("Coarse interstitial changes.", "Interstitial abnormality."),
    }.items():  # fmt: skip
        for text in texts:
            assert not wrong_labels({text: f"{name} 1"})


def test_two_explanations_of_a_sign_are_uncertain() -> None:
    assert not wrong_labels({
        "Blunt left CP angle: pleural thickening or a little fluid.": "Pleural Effusion -1, Pleural Other -1",
        "Basal change, either atelectasis or consolidation.": "Consolidation -1, Atelectasis -1",
        "Bibasal atelectasis or consolidation.": "Consolidation 1, Atelectasis 1",
        "No fracture seen, but fractures are often occult.": "Fracture -1",
    })  # fmt: skip


def test_words_of_an_examination_before_surgery_are_neutral() -> None:
    for text in ("Pre-op CXR: lungs within normal limits, fit for anaesthesia.", "Routine check-up. Normal chest.",
                 "UVC tip at T8. Lungs are well aerated."):  # fmt: skip
        assert not wrong_labels({text: "Support Devices 1, normal" if "UVC" in text else "normal"})


def test_places_of_devices_and_notes_of_care_are_neutral() -> None:
    assert not wrong_labels({
        "Leads in the RA and RV. No pneumothorax.": "Pneumothorax 0, Support Devices 1, normal",
        "Feeding tube lies in the stomach. Safe to feed.": "Support Devices 1, normal",
        "NG tube in the oesophagus, not safe to feed.": "Support Devices 1",
        "NG tube tip in the stomach. Do not use.": "Support Devices 1",
    })  # fmt: skip


def test_a_doubtful_explanation_leaves_the_sign_stated() -> None:
    assert not wrong_labels({
        "Left basal opacity is likely atelectasis.": "Lung Opacity 1, Atelectasis -1",
        "Opacity is likely a nodule, though pneumonia cannot be excluded.":
            "Lung Lesion -1, Lung Opacity 1, Pneumonia -1",
        "Consolidation is likely in the left base.": "Consolidation -1",
        "Possible pneumonia superimposed on chronic interstitial change.": "Lung Opacity 1, Pneumonia -1",
    })  # fmt: skip


def test_lines_in_position_are_devices() -> None:
    for text in (
        "Lines in satisfactory position.",
        "Drains in good position.",
        "Lines are appropriately positioned.",
    ):
        assert not wrong_labels({text: "Support Devices 1, normal"})


def test_a_compression_deformity_is_a_fracture() -> None:
    assert not wrong_labels({
        "Compression deformity of a mid thoracic vertebral body, age indeterminate.": "Fracture 1",
        "Possible compression deformity of L1.": "Fracture -1",
    })  # fmt: skip


def test_blunting_explained_by_a_scar_is_no_effusion() -> None:
    assert not wrong_labels({
        "Blunted right CP angle due to pleural thickening.": "Pleural Other 1",
        "Left costophrenic angle blunting from old scarring.": "Pleural Other 1",
        "Blunted CP angle, pleural thickening at the apex.": "Pleural Effusion -1, Pleural Other 1",
        "Blunting of the CP angle possibly due to pleural thickening.": "Pleural Effusion -1, Pleural Other -1",
    })  # fmt: skip


def test_the_other_or_the_only_lung_excludes_no_finding() -> None:
    assert not wrong_labels({
        "Left lung clear, right not.": "",
        "Left lung is clear but not the right.": "",
        "One lung only is aerated.": "",
        "Right lung is clear. Left is not.": "",
    })  # fmt: skip


def test_a_drained_effusion_is_absent() -> None:
    assert not wrong_labels({
        "The effusion has been drained.": "Pleural Effusion 0, normal",
        "The effusion has been partially drained.": "Pleural Effusion 1",
        "The abscess has been drained.": "",
    })  # fmt: skip
