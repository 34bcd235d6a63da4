import pytest

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
IMAGES = [  # (dicom, patient, study, view, split)
    ("02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", "10000032", "50414267", "PA", "train"),
    ("174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962", "10000032", "50414267", "LATERAL", "train"),
    ("2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab", "10000764", "57375967", "", "validate"),
    ("68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714", "10000898", "50771383", "AP", "test"),
]
REPORT = " FINAL REPORT\n EXAMINATION:  CHEST\n \n FINDINGS:  Heart is ___.\n \n IMPRESSION:  No edema.\n"


@pytest.fixture
def root(tmp_path, image_file, table):
    root = tmp_path / "jpg"
    for dicom, patient, study, _, _ in IMAGES:
        image_file(root / f"files/p{patient[:2]}/p{patient}/s{study}/{dicom}.jpg")
    table(
        root / "mimic-cxr-2.1.0-metadata.csv.gz",
        METADATA,
        [(d, p, s, "", v, 40, 32, 21800506, "1.0", "", "", "") for d, p, s, v, _ in IMAGES],
    )
    table(
        root / "mimic-cxr-2.1.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        [(d, s, p, split) for d, p, s, _, split in IMAGES],
    )
    names = sorted(OBSERVATIONS)
    cells = {"Edema": "0.0", "Cardiomegaly": "-1.0", "Fracture": "1.0"}
    table(
        root / "mimic-cxr-2.1.0-chexpert.csv.gz",
        ",".join(("subject_id", "study_id", *names)),
        [("10000032", "50414267", *(cells.get(name, "") for name in names))],
    )
    return root


@pytest.fixture
def reports(tmp_path):
    path = tmp_path / "mimic" / "files/p10/p10000032/s50414267.txt"
    path.parent.mkdir(parents=True)
    path.write_text(REPORT)
    return tmp_path / "mimic"


def test_views_splits_labels_and_reports_from_another_root(root, reports, read, ingested):
    archive = read("mimic-cxr-jpg", root, reports_root=str(reports))
    first, second, third = archive.records
    assert archive.problems == []
    assert [view.position for view in first.views] == ["PA", "LATERAL"] and first.report == REPORT
    assert [record.split for record in archive.records] == ["train", "validate", "test"]
    assert first.taken == "21800506T000001"
    assert first.labels == {"Cardiomegaly": -1, "Edema": 0, "Fracture": 1}
    assert second.labels is None and second.report == "" and third.views[0].path.is_file()
    manifest, infos = ingested("mimic-cxr-jpg", root, reports_root=str(reports))
    assert [info["visit"] for info in infos] == [0, 0, 0] and "2180" not in str(infos)
    assert manifest["counts"]["kept_studies"] == 3 and manifest["counts"]["rejected_images"] == 0
    assert infos[0]["report"]["findings"] == "Heart is ___."


def test_reports_may_be_in_the_same_tree(root, read):
    path = root / "files/p10/p10000898/s50771383.txt"
    path.write_text(REPORT)
    assert [bool(record.report) for record in read("mimic-cxr-jpg", root).records] == [False, False, True]


def test_a_wrong_reports_root_is_refused(root, tmp_path, read):
    with pytest.raises(UserError, match=r"mimic-cxr-reports\.zip"):
        read("mimic-cxr-jpg", root, reports_root=str(tmp_path))


def test_absent_tables_are_problems_and_only_the_metadata_is_required(root, read):
    (root / "mimic-cxr-2.1.0-split.csv.gz").unlink()
    (root / "mimic-cxr-2.1.0-chexpert.csv.gz").unlink()
    archive = read("mimic-cxr-jpg", root)
    assert {record.split for record in archive.records} == {None}
    assert sorted(problem.reason for problem in archive.problems) == [
        "no table mimic-cxr-2.*-chexpert.csv.gz",
        "no table mimic-cxr-2.*-split.csv.gz",
    ]
    (root / "mimic-cxr-2.1.0-metadata.csv.gz").unlink()
    with pytest.raises(UserError, match="metadata"):
        read("mimic-cxr-jpg", root)


def test_rows_without_a_patient_are_skipped_and_counted(root, table, read, ingested):
    rows = [(d, "nan" if s == "57375967" else p, s, "", v, *[""] * 7) for d, p, s, v, _ in IMAGES]
    table(root / "mimic-cxr-2.1.0-metadata.csv.gz", METADATA, rows)
    archive = read("mimic-cxr-jpg", root)
    assert len(archive.records) == 2
    assert [problem.reason for problem in archive.problems] == ["row without subject_id"]
    assert archive.problems[0].where.endswith("line 4")
    manifest, _ = ingested("mimic-cxr-jpg", root)
    assert manifest["counts"]["source_problems"] == {"row without subject_id": 1}
