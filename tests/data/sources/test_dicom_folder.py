"""A hospital's export: reports beside files, patients and studies of the headers, splits."""

import gzip
import zlib
from collections import Counter

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medunifier.data.ingest.check import check_source
from medunifier.data.ingest.command import main as ingest_command
from medunifier.data.ingest.splits import assign_splits
from medunifier.data.records import SPLITS
from medunifier.data.sources import SourceOptions, read_source
from medunifier.data.sources.dicom_folder import records as source_records
from medunifier.shared.errors import UserError
from tests.data.dicom_samples import file_bytes, sample, sample_dicom
from tests.data.files.test_walk import identified, without_pixels, write

KEY = b"k" * 32


def reports(archive):
    return {record.views[0].path.name: record.report for record in archive.records}


def test_reports_are_found_beside_names_with_dots(tmp_path, read):
    images = {
        "1.2.840.99.7/1.dcm": "7", "1.2.840.99.8": "8", "chest.dcm.gz": "packed", "x.y.IMA": "ima",
        "a.dcm": "appended",         "deep/1.5/series/b": "deep",
    }  # fmt: skip
    files = {
        name: identified(patient=text, study=f"1.{number}") for number, (name, text) in enumerate(images.items())
    }
    files["chest.dcm.gz"] = gzip.compress(files["chest.dcm.gz"])
    texts = {
        "1.2.840.99.7.txt": "7", "1.2.840.99.8.txt": "8", "chest.txt": "packed", "x.y.txt": "ima",
        "a.dcm.txt": "appended", "deep/1.5.txt": "deep",
    }  # fmt: skip
    write(tmp_path, files | {name: text.encode() for name, text in texts.items()})
    archive = read("dicom-folder", tmp_path)
    assert len(archive.records) == len(images) and not archive.problems
    assert all(record.report == record.patient_id for record in archive.records)


def test_a_shorter_name_is_not_the_report_of_a_longer_one(tmp_path, read):
    write(tmp_path, {
        "1.2.840.99.7/i": identified("p1", "1.1"),
        "1.2.840.99.8": identified("p2", "1.2"), "a.b.dcm": identified("p3", "1.3"),
        "1.2.840.99.txt": b"stray", "1.2.840.txt": b"stray", "a.txt": b"stray",
    })  # fmt: skip
    archive = read("dicom-folder", tmp_path)
    assert set(reports(archive).values()) == {""}
    assert [problem.reason for problem in archive.problems] == ["not an image file"] * 3


def test_reports_that_are_not_used_are_counted(tmp_path, read):
    write(tmp_path, {
        "a.dcm": identified("p1", "1.1"), "a.txt": b"first", "b.dcm": identified("p1", "1.1"), "b.txt": b"second",
        "c.dcm": identified("p2", "1.2"), "c.txt": b"same", "d.dcm": identified("p2", "1.2"), "d.txt": b"same\n",
        "e.dcm": identified("p3", "1.3"), "e.txt": b" \n", "f.dcm": identified("p3", "1.3"), "f.txt": b"theirs",
    })  # fmt: skip
    archive = read("dicom-folder", tmp_path)
    assert {record.report.strip() for record in archive.records} == {"first", "same", "theirs"}
    reasons = {problem.where.rpartition("/")[2]: problem.reason for problem in archive.problems}
    assert set(reasons) == {"b.txt", "e.txt"} and "same study" in reasons["b.txt"] and "empty" in reasons["e.txt"]


def test_a_report_beside_a_folder_of_several_studies_belongs_to_none(tmp_path, read):
    write(tmp_path, {
        "day/a.dcm": identified("p1", "1.1"), "day/b.dcm": identified("p2", "1.2"), "day.txt": b"whose?",
        "one/a.dcm": identified("p3", "1.3"), "one/b.dcm": identified("p3", "1.3"), "one.txt": b"theirs",
    })  # fmt: skip
    assert sorted(record.report for record in read("dicom-folder", tmp_path).records) == ["", "", "theirs"]


def test_gzipped_and_spaced_ids_are_the_same_patient(tmp_path, read):
    write(tmp_path, {
        "a.dcm": identified("123", "1.1"), "b.dcm.gz": gzip.compress(identified(" 123", "1.1")),
        "c.dcm.gz": gzip.compress(identified("123 ", "1.2")), "d": identified("0123", "1.3"),
    })  # fmt: skip
    archive = read("dicom-folder", tmp_path)
    assert [(record.patient_id, len(record.views)) for record in archive.records] == [
        ("123", 2),
        ("123", 1),
        ("0123", 1),
    ]


def test_ids_of_a_table_are_equal_to_those_of_a_header(tmp_path, table, read, image_file):
    image_file(tmp_path / "a.png"), image_file(tmp_path / "b.png")
    table(tmp_path / "manifest.csv", "image,patient_id", [("a.png", " 123"), ("b.png", "123 ")])
    write(tmp_path / "dicom", {"a.dcm": identified("123 ")})
    ids = {r.patient_id for r in read("csv", tmp_path).records + read("dicom-folder", tmp_path / "dicom").records}
    assert ids == {"123"}


def test_other_files_are_no_patients_and_leave_no_split_empty(tmp_path, read):
    patients = {f"{number}/i.dcm": identified(f"p{number}", f"1.{number}") for number in range(3)}
    others = {f"{number}/README": b"text" for number in range(3)} | {
        "DICOMDIR": without_pixels("1.2.840.10008.1.3.10"), "junk.dcm": b"junk", "cut": sample("deflated")[:300],
        "sr.dcm": without_pixels("1.2.840.10008.5.1.4.1.1.88.11"),
    }  # fmt: skip
    write(tmp_path, patients | others)
    archive = read("dicom-folder", tmp_path)
    assert {record.patient_id for record in archive.records} == {"p0", "p1", "p2"}
    assert len(archive.problems) == len(others)
    for seed in range(20):
        splits = {record.split for record in assign_splits(archive.records, bytes([seed]) * 32, 0.1, 0.1)}
        assert splits == set(SPLITS)


def test_files_without_a_patient_and_a_study_are_left_out_and_counted(tmp_path, read):
    files = {f"none{number}.dcm": identified("", "") for number in range(3)}
    files |= {"spaces.dcm.gz": gzip.compress(identified("  ", "")), "study.dcm": identified("", "1.1"),
              "study2.dcm": identified(" ", "1.1"), "patient.dcm": identified("p", "")}  # fmt: skip
    write(tmp_path, files)
    archive = read("dicom-folder", tmp_path)
    assert [(record.patient_id, len(record.views)) for record in archive.records] == [("p", 1), ("1.1", 2)]
    assert len(archive.problems) == 4 and len({problem.reason for problem in archive.problems}) == 1
    assert "PatientID" in archive.problems[0].reason and "csv" in archive.problems[0].reason
    for name in ("study.dcm", "study2.dcm", "patient.dcm"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"PatientID.*\(4\)"):
        read("dicom-folder", tmp_path)


def test_files_without_a_study_are_named_with_the_reason_on_request(tmp_path, capsys):
    write(tmp_path, {"none.dcm": identified("", ""), "b.dcm": b"x"})
    arguments = ["--source", "dicom-folder", "--root", str(tmp_path), "--find", "left_out"]
    for more in ({}, {"named.dcm": identified("p", "1.1")}):
        write(tmp_path, more)
        ingest_command(arguments)
        lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
        assert lines.keys() == {str(tmp_path / "none.dcm"), str(tmp_path / "b.dcm")}
        assert "PatientID" in lines[str(tmp_path / "none.dcm")] and "damaged" in lines[str(tmp_path / "b.dcm")]


def test_the_summary_of_a_folder_speaks_of_files(tmp_path, ingested, capsys):
    write(tmp_path / "a", {"named.dcm": identified("p", "1.1"), "b.dcm": b"x"})
    ingested("dicom-folder", tmp_path / "a")
    printed = capsys.readouterr().out
    assert "1 files left out" in printed and "in the source" not in printed and "table lines" not in printed


def test_a_truncated_file_is_a_reject_of_its_patient(tmp_path, ingested):
    whole = {f"{number}.dcm": identified(f"p{number}", f"1.{number}") for number in range(3)}
    deflated = identified("p1", "1.1", DeflatedExplicitVRLittleEndian)
    write(tmp_path, whole | {"cut.dcm": identified("p0", "1.0")[:900], "zlib.dcm": deflated[:-400]})
    manifest, infos = ingested("dicom-folder", tmp_path)
    counts = manifest["counts"]
    assert (counts["patients"], counts["rejected_images"], len(infos)) == (3, 2, 3) and not counts["source_problems"]


def test_the_error_of_a_folder_without_dicom_counts_what_was_left_out(tmp_path, read, image_file):
    image_file(tmp_path / "a.png")
    write(tmp_path, {"README": b"x", "b.dcm": b"x"})
    with pytest.raises(UserError, match=r"csv source.*\(1\)"):
        read("dicom-folder", tmp_path)


def test_a_header_is_not_inflated_without_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("medunifier.data.images.dicom.MAX_FILE_BYTES", 2**20)
    whole = identified(syntax=DeflatedExplicitVRLittleEndian)
    start = whole.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian) + 1
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + packer.compress(bytes(2**23)) + packer.flush())
    (tmp_path / "whole.dcm").write_bytes(whole)
    sizes, decompress = [], zlib.decompress

    def watched(*given):
        content = decompress(*given)
        sizes.append(len(content))
        return content

    monkeypatch.setattr("pydicom.filereader.zlib.decompress", watched)
    records = list(source_records(tmp_path, SourceOptions(), problems := []))
    assert [record.views[0].path.name for record in records] == ["whole.dcm"]
    assert [problem.where for problem in problems] == [str(tmp_path / "bomb.dcm")]
    assert max(sizes, default=0) <= 2**20


def test_the_check_reads_views_of_headers_and_labels_of_reports_as_ingest_does(tmp_path, ingested):
    files = {}
    for number, view in enumerate(("PA", "AP", "LATERAL", "")):
        dataset = sample_dicom()
        dataset.PatientID, dataset.StudyInstanceUID, dataset.ViewPosition = f"p{number}", f"1.{number}", view
        files[f"{number}.dcm"] = file_bytes(dataset)
    texts = {"0.txt": b"FINDINGS: Pleural effusion.", "1.txt": b"IMPRESSION: Edema.", "2.txt": b"Effusion, she said."}
    write(tmp_path, files | texts)
    manifest, infos = ingested("dicom-folder", tmp_path)  # which compares the counts
    assert manifest["counts"]["reports_without_headers"] == 1 and sum(bool(info["labels"]) for info in infos) == 2
    assert Counter(view for info in infos for view in info["views"])["PA"] == 1
    check = check_source(
        read_source("dicom-folder", tmp_path, SourceOptions()),
        "dicom-folder",
        str(tmp_path),
        1,
        workers=1,
        cluster="",
    )
    assert check.decoded == 1 and check.views == {"PA": 1, "AP": 1, "LATERAL": 1, "not stated": 1}
    assert check.counts["studies with labels"] == 2 and check.counts["reports without section headers"] == 1
