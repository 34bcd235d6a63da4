"""The chronological order of a patient's studies, from dates in tables and DICOM headers."""

import pydicom
import pytest

from medunifier.data.shards.prior_studies import number_visits
from medunifier.data.sources.mimic_cxr import moment
from medunifier.data.sources.tables import Row


def numbered(archive):
    return {record.study_id: record.visit for record in number_visits(archive.records)}


@pytest.mark.parametrize(
    ("images", "taken"),
    [
        ([("21800506", "213014.531"), ("21800506", "83045.5")], "21800506T083045"),
        ([("21800506", "")], "21800506T000000"),
        ([("21800506", "1.0"), ("", "")], ""),
        ([], ""),
    ],
)
def test_a_mimic_study_has_the_time_of_its_first_image(images, taken):
    assert moment(Row({"StudyDate": day, "StudyTime": time}) for day, time in images) == taken


def test_a_date_column_of_a_table_gives_the_order(tmp_path, image_file, table, read):
    rows = [("b.png", "p", "late", "2031-04-05"), ("a.png", "p", "early", "2031-01-31"), ("c.png", "p", "when", "")]
    table(tmp_path / "manifest.csv", "image,patient_id,study_id,taken_on", rows)
    for name, *_ in rows:
        image_file(tmp_path / name)
    assert numbered(read("csv", tmp_path, date="taken_on")) == {"p/late": 1, "p/early": 0, "p/when": None}
    assert set(numbered(read("csv", tmp_path)).values()) == {None}


def test_dicom_headers_of_a_folder_give_the_order(tmp_path, image_file, read):
    for name, study, day, time in [("x", "1", "20310405", "090000.5"), ("y", "2", "20310405", "081500"),
                                   ("z", "3", "unknown", "")]:  # fmt: skip
        path = image_file(tmp_path / f"{name}.dcm")
        dataset = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            dataset.PatientID, dataset.StudyInstanceUID = "p", study
            dataset.StudyDate, dataset.StudyTime = day, time
            dataset.save_as(path)
    assert numbered(read("dicom-folder", tmp_path)) == {"p/1": 1, "p/2": 0, "p/3": None}
