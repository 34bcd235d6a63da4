import json

import pytest

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError

NAMES = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{NAMES}"


def cells(**values):
    return [values.get(name.replace(" ", "_"), "") for name in NAMES.split(",")]


@pytest.fixture
def chexpert(tmp_path, image_file, table):
    # The local folder may have another name than the one in the tables.
    root = tmp_path / "CheXpert"
    prefix = "CheXpert-v1.0-small"
    sick = cells(Edema="1.0", Cardiomegaly="-1.0", Pneumothorax="0.0")
    rows = [
        (f"{prefix}/train/patient00001/study1/view1_frontal.jpg", "Female", 68, "Frontal", "AP", *sick),
        (f"{prefix}/train/patient00001/study1/view2_lateral.jpg", "Female", 68, "Lateral", "", *sick),
        (
            f"{prefix}/train/patient00002/study1/view1_frontal.jpg",
            "Male",
            40,
            "Frontal",
            "PA",
            *cells(No_Finding=1.0),
        ),
    ]
    valid = [(f"{prefix}/valid/patient64541/study1/view1_frontal.jpg", "Male", 73, "Frontal", "AP", *([0] * 14))]
    for row in rows + valid:
        image_file(root / row[0].removeprefix(f"{prefix}/"))
    table(root / "train.csv", HEADER, rows)
    table(root / "valid.csv", HEADER, valid)
    return root


def test_labels_views_and_splits(chexpert, read, ingested):
    archive = read("chexpert", chexpert)
    first, second, third = archive.records
    assert [view.position for view in first.views] == ["AP", "LATERAL"] and second.views[0].position == "PA"
    assert first.labels == {"Edema": 1, "Cardiomegaly": -1, "Pneumothorax": 0}  # blank: not mentioned
    assert second.labels == {"No Finding": 1} and third.labels == dict.fromkeys(OBSERVATIONS, 0)
    assert [record.split for record in archive.records] == ["train", "train", "validate"]
    assert first.patient_id == "patient00001" != second.patient_id and first.study_id != second.study_id
    manifest, infos = ingested("chexpert", chexpert)
    assert manifest["counts"]["rejected_images"] == 0 and manifest["counts"]["kept_studies"] == 3
    assert sorted(len(info["views"]) for info in infos) == [1, 1, 2]


def test_a_test_study_without_images_is_a_problem(chexpert, image_file, table, read):
    rows = [(f"CheXpert-v1.0/test/patient6474{n}/study1", *([n] * 14)) for n in range(2)]
    table(chexpert / "groundtruth.csv", f"Study,{NAMES}", rows)
    image_file(chexpert / "test/patient64741/study1/view1_frontal.jpg")
    archive = read("chexpert", chexpert)
    assert [record.study_id for record in archive.records if record.split == "test"] == ["test/patient64741/study1"]
    assert archive.records[-1].labels == dict.fromkeys(OBSERVATIONS, 1)
    assert [problem.reason for problem in archive.problems] == ["study without an image"]


def test_invalid_labels_are_skipped_and_counted(chexpert, table, read):
    path = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"
    row = (path, "Male", 73, "Frontal", "AP", *cells(Edema="yes", Fracture="2", Cardiomegaly="1.0"))
    table(chexpert / "valid.csv", HEADER, [row, ("nan", *[""] * 18)])
    archive = read("chexpert", chexpert)
    assert archive.records[-1].labels == {"Cardiomegaly": 1}
    assert sorted(problem.reason for problem in archive.problems) == [
        "label of Edema is not 1, 0, -1 or blank",
        "label of Fracture is not 1, 0, -1 or blank",
        "row without Path",
    ]


def test_missing_column_and_table_are_named(chexpert, table, read):
    table(chexpert / "train.csv", HEADER.replace("AP/PA,", "").replace("Edema,", ""), [])
    with pytest.raises(UserError, match=r"train\.csv.*AP/PA.*Edema"):
        read("chexpert", chexpert)
    (chexpert / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv.*CheXpert"):
        read("chexpert", chexpert)


PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_findings,section_impression,age,sex,split"
)


@pytest.fixture
def plus(tmp_path, image_file, table):
    def row(path, side, direction, patient, findings, impression, split):
        dicom = path.replace("jpg", "dcm")
        return (path, dicom, side, direction, patient, 1, "RAW", "", findings, impression, 60, "F", split)

    rows = [
        row("train/patient1/study1/view1_frontal.jpg", "Frontal", "AP", "patient1", "Big heart.", "Edema.", "train"),
        row("train/patient1/study1/view2_lateral.jpg", "Lateral", "", "patient1", "Big heart.", "Edema.", "train"),
        row("valid/patient2/study1/view1_frontal.jpg", "Frontal", "PA", "patient2", "nan", "Normal.", "valid"),
    ]
    root = tmp_path / "plus"
    table(root / "df_chexpert_plus_240401.csv", PLUS, rows)
    for path, *_ in rows:
        image_file((root / "PNG" / path).with_suffix(".png"))
    return root


def test_plus_has_sections_and_png_files(plus, read, ingested):
    first, second = read("chexpert-plus", plus).records
    assert (first.findings, first.impression, first.split) == ("Big heart.", "Edema.", "train")
    assert first.taken == "000001"
    assert (second.findings, second.impression, second.split) == ("", "Normal.", "validate")
    assert [view.position for view in first.views] == ["AP", "LATERAL"]
    manifest, infos = ingested("chexpert-plus", plus)
    assert manifest["counts"]["rejected_images"] == 0
    assert infos[0]["report"]["text"] == "Big heart. Edema." and infos[0]["labels"]["Edema"] == 1  # from the report


def test_plus_uses_the_published_labels_if_present(plus, read):
    line = {"path_to_image": "train/patient1/study1/view1_frontal.jpg"} | dict.fromkeys(OBSERVATIONS)
    path = plus / "chexbert_labels" / "report_fixed.json"
    path.parent.mkdir()
    path.write_text(json.dumps(line | {"Edema": 1.0, "Fracture": 0.0, "Cardiomegaly": -1.0}) + "\n")
    first, second = read("chexpert-plus", plus).records
    assert first.labels == {"Edema": 1, "Fracture": 0, "Cardiomegaly": -1} and second.labels is None
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1"):
        read("chexpert-plus", plus)
