"""Data sets with images and labels but no English reports: PadChest, VinDr, RSNA, SIIM, NIH, COVIDx."""

import pytest

from medunifier.data.images.masks import read_masks
from medunifier.data.sources import vindr
from medunifier.shared.errors import UserError

PADCHEST = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,ReportID,Report,MethodLabel,Labels,Localizations"
)


def padchest_row(image, study, patient, projection, report, labels, folder=0):
    return (0, image, folder, 20140915, study, patient, 1930, "F", "", projection, "", "No", 4765777, report,
            "Physician", labels, "[]")  # fmt: skip


def test_padchest(tmp_path, image_file, table, read, ingested):
    images = {"a.png": ("s1", "PA"), "b.png": ("s1", "L"), "c.png": ("s2", "AP_horizontal"), "d.png": ("s3", "PA")}
    labels = {
        "s1": "['pleural effusion', ' cardiomegaly', 'hiatal hernia']",
        "s2": "['normal']",
        "s3": "[' pneumonia', nan]",
    }
    rows = [padchest_row(i, s, f"p{s}", view, "sin derrame .", labels[s], "54.0") for i, (s, view) in images.items()]
    rows += [padchest_row("e.png", "s4", "", "PA", "", ""), padchest_row("f.png", "s5", "p5", "PA", "nan", "nan")]
    table(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", PADCHEST, rows)
    for name in images:
        image_file(tmp_path / "54" / name, bits=16)
    image_file(tmp_path / "0" / "f.png", bits=16)
    archive = read("padchest", tmp_path)
    first, second, third, last = archive.records
    assert [view.position for view in first.views] == ["PA", "LATERAL"] and second.views[0].position == "AP"
    assert first.labels == {"Cardiomegaly": 1, "Pleural Effusion": 1} and second.labels == {"No Finding": 1}
    assert third.labels == {} and last.labels == {} and last.findings == "" and first.findings == "sin derrame ."
    # A cell that is not a Python list is recorded as a problem, and its study has no labels.
    assert sorted(problem.reason for problem in archive.problems) == ["Labels is not a list", "row without PatientID"]
    manifest, _ = ingested("padchest", tmp_path)
    assert manifest["counts"]["kept_studies"] == 4 and manifest["counts"]["rejected_images"] == 0
    assert manifest["counts"]["label_names"]["hiatal hernia"] == {"observation": None, "studies": 1}


def vindr_tree(root, image_file, table):
    names = [*vindr.LABELS, "Aortic enlargement", "Other diseases"]

    def reading(image, reader, ticked):
        return (image, reader, *(int(name in ticked) for name in names))

    train = [
        reading("i1", "R1", {"Nodule/Mass", "Rib fracture", "Aortic enlargement"}),
        reading("i1", "R2", {"Nodule/Mass", "Aortic enlargement"}),
        reading("i1", "R3", set()),
        *(reading("i2", reader, {"No finding"}) for reader in ("R1", "R2", "R3")),
        *(reading("i3", reader, {"Lung Opacity"}) for reader in ("R1", "R2", "R3")),
    ]
    test = [(image, *cells) for image, _, *cells in [reading("i4", "", {"Pleural thickening", "Clavicle fracture"})]]
    table(root / "annotations/image_labels_train.csv", ",".join(("image_id", "rad_id", *names)), train)
    header = ",".join(("image_id", *names)).replace("Other diseases", "Other disease")
    table(root / "annotations/image_labels_test.csv", header, test)
    for name in ("train/i1", "train/i2", "train/i3", "test/i4"):
        image_file(root / f"{name}.dicom", bits=16)


def test_vindr_labels_are_the_majority_and_others_negative(tmp_path, image_file, table, read, ingested):
    vindr_tree(tmp_path, image_file, table)
    first, second, third, fourth = read("vindr", tmp_path).records
    assert {name for name, value in first.labels.items() if value} == {"Lung Lesion"}
    assert first.labels["Fracture"] == 0 and "Enlarged Cardiomediastinum" not in first.labels
    assert "Lung Opacity" not in first.labels  # a lesion is one
    assert (
        second.labels["No Finding"] == 1 and second.labels["Lung Opacity"] == 0 and third.labels["Lung Opacity"] == 1
    )
    assert {name for name, value in fourth.labels.items() if value} == {"Fracture", "Pleural Other"}
    manifest, infos = ingested("vindr", tmp_path)
    assert manifest["counts"]["label_names"]["Aortic enlargement"] == {"observation": None, "studies": 1}
    assert manifest["counts"]["rejected_images"] == 0
    # The official test set is unchanged, and validation is sampled from train.
    assert sorted(info["split"] for info in infos) == ["test", "train", "train", "validate"]


def test_rsna(tmp_path, image_file, table, read, ingested):
    boxes = [("p1", 264, 152, 213, 379, 1), ("p1", 562, 152, 256, 453, 1), ("p2", "", "", "", "", 0),
             ("p3", "", "", "", "", 0), ("p4", "", "", "", "", "")]  # fmt: skip
    table(tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", boxes)
    for image in ("p1", "p2", "p3"):
        image_file(tmp_path / "stage_2_train_images" / f"{image}.dcm")
    alone = read("rsna", tmp_path)
    assert [record.labels for record in alone.records] == [{"Pneumonia": 1}, {"Pneumonia": 0}, {"Pneumonia": 0}]
    table(
        tmp_path / "stage_2_detailed_class_info.csv",
        "patientId,class",
        [("p1", "Lung Opacity"), ("p2", "Normal"), ("p3", "No Lung Opacity / Not Normal")],
    )
    archive = read("rsna", tmp_path)
    assert [record.labels for record in archive.records] == [
        {"Lung Opacity": 1, "Pneumonia": 1, "No Finding": 0},
        {"Lung Opacity": 0, "Pneumonia": 0, "No Finding": 1},
        {"Lung Opacity": 0, "Pneumonia": 0, "No Finding": 0},
    ]
    assert [problem.reason for problem in archive.problems] == ["row without Target"]
    manifest, _ = ingested("rsna", tmp_path)
    assert manifest["counts"]["kept_studies"] == 3 and manifest["counts"]["rejected_images"] == 0


def test_siim(tmp_path, image_file, table, read, ingested):
    rows = [("1.2.1", " -1"), ("1.2.2", " 0 40 40 5"), ("1.2.2", " 1240 40"), ("1.2.3", "-1"), ("1.2.4", "")]
    table(tmp_path / "train-rle.csv", "ImageId, EncodedPixels", rows)
    for number in (1, 2, 3):
        image_file(tmp_path / f"siim/dicom-images-train/9.{number}/8.{number}/1.2.{number}.dcm")
    archive = read("siim", tmp_path)
    assert [record.labels["Pneumothorax"] for record in archive.records] == [0, 1, 0]
    assert [problem.reason for problem in archive.problems] == ["row without EncodedPixels"]
    # Images of 40 x 32: the first column, five pixels of the third, and from a second row the last column.
    masks = archive.records[1].views[0].masks
    mask = read_masks(masks, (40, 32), 40)["Pneumothorax"]
    assert len(masks) == 2 and mask.sum() == 85 and mask[:, [4, 35]].all() and mask[:5, 6].all()
    assert archive.records[0].views[0].masks == ()
    manifest, _ = ingested("siim", tmp_path)
    assert manifest["counts"]["kept_studies"] == 3 and manifest["counts"]["rejected_images"] == 0


NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def nih_tree(root, image_file, table, lists=True):
    rows = [
        ("00000001_000.png", "Cardiomegaly|Emphysema", 0, 1, 57, "M", "PA"),
        ("00000001_001.png", "No Finding", 1, 1, 58, "M", "AP"),
        ("00000002_000.png", "Effusion|Infiltration", 0, 2, 80, "M", "PA"),
        ("00000003_000.png", "Consolidation|Pleural_Thickening", 0, 3, 81, "F", "PA"),
    ]
    table(root / "Data_Entry_2017_v2020.csv", NIH, [(*row, 2682, 2749, 0.143, 0.143) for row in rows])
    for number, (name, *_) in enumerate(rows, start=1):
        image_file(root / f"images_{number:03d}" / "images" / name)
    if lists:
        (root / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000002_000.png\n")
        (root / "test_list.txt").write_text("00000003_000.png\n")


def test_nih(tmp_path, image_file, table, read, ingested):
    nih_tree(tmp_path, image_file, table)
    first, second, third, fourth = read("nih", tmp_path).records
    assert first.labels["Cardiomegaly"] == 1 and first.labels["Edema"] == 0 == first.labels["No Finding"]
    assert second.labels["No Finding"] == 1 and sum(second.labels.values()) == 1
    assert {name for name, value in third.labels.items() if value} == {"Pleural Effusion", "Lung Opacity"}
    # NIH's Infiltration is not listed, but a consolidation is an opacity: not negative.
    assert "Lung Opacity" not in fourth.labels and fourth.labels["Pleural Other"] == 1
    assert first.patient_id == second.patient_id and second.views[0].position == "AP"
    manifest, infos = ingested("nih", tmp_path)
    assert manifest["counts"]["rejected_images"] == 0
    by_split = [sum(info["split"] == split for info in infos) for split in ("train", "validate", "test")]
    assert by_split in (
        [1, 2, 1],
        [2, 1, 1],
    )  # patient 1 with two images is in one split; patient 3 is in the test set


def test_nih_without_its_lists_has_no_official_split(tmp_path, image_file, table, read):
    nih_tree(tmp_path, image_file, table, lists=False)
    archive = read("nih", tmp_path)
    assert {record.split for record in archive.records} == {None} and len(archive.problems) == 2
    (tmp_path / "test_list.txt").write_text("00000003_000.png\n")  # does not determine the splits of the others
    assert {record.split for record in read("nih", tmp_path).records} == {None}


def covidx_tree(root, image_file):
    (root / "train_COVIDx9A.txt").write_text(
        "379 1e64990d1b40c1758a2aaa9c7f7a85_jumbo.jpeg COVID-19 cohen\n"
        "5 image with spaces.png normal rsna\n"
        "7 c.png pneumonia rsna\n"
        "broken line\n"
    )
    (root / "test_COVIDx9A.txt").write_text("5 d.png pneumonia cohen\n")
    for name in ("1e64990d1b40c1758a2aaa9c7f7a85_jumbo.jpeg", "image with spaces.png", "c.png"):
        image_file(root / "train" / name)
    image_file(root / "test" / "d.png")


def test_covidx(tmp_path, image_file, read, ingested):
    covidx_tree(tmp_path, image_file)
    archive = read("covidx", tmp_path)
    assert [record.labels for record in archive.records] == [
        {},
        {"No Finding": 1},
        {"Pneumonia": 1},
        {"Pneumonia": 1},
    ]
    # Patient 5 of one collection is not patient 5 of another.
    assert archive.records[1].patient_id != archive.records[3].patient_id
    assert [problem.reason for problem in archive.problems] == ["line without patient, file name, class and source"]
    manifest, infos = ingested("covidx", tmp_path)
    assert manifest["counts"]["rejected_images"] == 0
    assert sorted(info["split"] for info in infos) == ["test", "train", "train", "validate"]
    assert manifest["counts"]["label_names"] == {
        "pneumonia": {"observation": "Pneumonia", "studies": 2},
        "COVID-19": {"observation": None, "studies": 1},
        "normal": {"observation": "No Finding", "studies": 1},
    }
    (tmp_path / "val.txt").write_text("9 e.png normal rsna\n")
    assert [record.split for record in read("covidx", tmp_path).records] == ["train"] * 3 + ["validate", "test"]


def test_covidx_with_two_lists_is_refused(tmp_path, image_file, read):
    covidx_tree(tmp_path, image_file)
    (tmp_path / "train_COVIDx9B.txt").write_text("")
    with pytest.raises(UserError, match="COVIDx9"):
        read("covidx", tmp_path)


@pytest.mark.parametrize(
    ("source", "name"),
    [("padchest", "PADCHEST"), ("vindr", "image_labels_train"), ("rsna", "stage_2_train_labels"),
     ("siim", "train-rle"), ("nih", "Data_Entry_2017"), ("covidx", "train"), ("chexpert-plus", "df_chexpert_plus")],
)  # fmt: skip
def test_a_folder_with_another_layout_raises_a_one_line_error(source, name, tmp_path, read):
    with pytest.raises(UserError, match=rf"{name}.*top folder") as raised:
        read(source, tmp_path)
    assert "\n" not in str(raised.value)
