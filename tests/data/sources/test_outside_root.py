"""Tables name paths: none leads out of the archive unless an option allows it, and only regular files are read."""

import gzip
import json
import os
import signal

import fsspec
import pytest

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.ingest.pseudonyms import load_key
from medunifier.data.remote_paths import as_path, lies_under
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.sources import SOURCES, SourceOptions, read_source
from medunifier.data.sources import vindr as vindr_source
from medunifier.data.sources.tables import read_table, read_text
from medunifier.shared.errors import UserError
from tests.data.sources.test_chexpert import HEADER, PLUS
from tests.data.sources.test_image_sets import NIH, PADCHEST, padchest_row
from tests.data.sources.test_mimic_cxr_jpg import METADATA
from tests.data.sources.test_openi import report

NO_LABELS = [""] * len(OBSERVATIONS)


@pytest.fixture
def in_time():
    """End a reader that hangs."""

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def write_tree(source, root, names, table):
    """A table of ``source`` that names each of ``names`` as its format does: some add the suffix."""
    if source == "csv":
        table(root / "manifest.csv", "image", [(f"{name}.png",) for name in names])
    elif source == "r2gen":
        entries = [{"id": f"a{i}", "split": "train", "image_path": [f"{n}.png"]} for i, n in enumerate(names)]
        root.mkdir(parents=True, exist_ok=True)
        (root / "annotation.json").write_text(json.dumps({"train": entries}))
    elif source == "openi":
        for number, name in enumerate(names):
            report(root, number, [name])
    elif source == "padchest":
        rows = [padchest_row(f"{n}.png", f"s{i}", "p", "PA", "x", "[]", "images") for i, n in enumerate(names)]
        table(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST, rows)
    elif source == "vindr":
        labels = ",".join(("image_id", "rad_id", *vindr_source.LABELS))
        rows = [(name, "R1", *("0" for _ in vindr_source.LABELS)) for name in names]
        table(root / "annotations/image_labels_train.csv", labels, rows)
        table(root / "annotations/image_labels_test.csv", labels, [])
    elif source == "rsna":
        rows = [(name, "", "", "", "", 0) for name in names]
        table(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", rows)
    elif source == "siim":
        table(root / "train-rle.csv", "ImageId,EncodedPixels", [(name, "-1") for name in names])
    elif source == "nih":
        rows = [(f"{name}.png", "No Finding", 0, i, 57, "M", "PA", 1, 1, 1, 1) for i, name in enumerate(names)]
        table(root / "Data_Entry_2017_v2020.csv", NIH, rows)
    elif source == "covidx":
        root.mkdir(parents=True, exist_ok=True)
        (root / "train_1.txt").write_text("".join(f"{i} {n}.png normal rsna\n" for i, n in enumerate(names)))
        (root / "test_1.txt").write_text("")
    elif source in ("mimic-cxr", "phantom"):
        rows = [(i, f"s{i}", f"p{i}", f"{name}.dcm") for i, name in enumerate(names)]
        table(root / "cxr-record-list.csv", "dicom_id,study_id,subject_id,path", rows)
    elif source == "mimic-cxr-jpg":
        rows = [(n, f"1{i}", i, "", "PA", 1, 1, "", "", "", "", "") for i, n in enumerate(names)]
        table(root / "mimic-cxr-2.1.0-metadata.csv", METADATA, rows)
    elif source == "chexpert":
        rows = [(f"{name}.jpg", "F", 1, "Frontal", "AP", *NO_LABELS) for name in names]
        table(root / "train.csv", HEADER, rows)
        table(root / "groundtruth.csv", HEADER.replace("Path,", "Study,"), [("../..", *[""] * 18)])
    elif source == "chexpert-plus":
        rows = [(f"{n}.png", "", "Frontal", "AP", f"p{i}", "", "", "", "x", "x", "", "", "train")
                for i, n in enumerate(names)]  # fmt: skip
        table(root / "df_chexpert_plus_240401.csv", PLUS, rows)
    else:
        raise AssertionError(f"no tree for {source}")


@pytest.mark.parametrize("source", sorted(SOURCES.keys() - {"dicom-folder"}))
def test_no_table_leads_out_of_the_archive(source, tmp_path, table):
    root = tmp_path / "archive"
    up = "../" * 20 + str(tmp_path)[1:] + "/secret/x"
    write_tree(source, root, ["train/a/b/c", up, str(tmp_path / "secret" / "x"), "../../../../../x"], table)
    (tmp_path / "secret.txt").write_text("FINDINGS: secret")
    archive = read_source(source, root, SourceOptions())
    paths = [view.path for record in archive.records for view in record.views]
    assert len(archive.records) >= 1
    assert all(os.path.realpath(path).startswith(f"{root}/") for path in paths)
    assert not any("secret" in (r.report, r.findings, r.impression) for r in archive.records)
    assert any("outside" in problem.reason for problem in archive.problems)
    allowed = read_source(source, root, SourceOptions(outside_root=True))
    assert len(allowed.records) >= len(archive.records)
    assert not any("outside" in problem.reason for problem in allowed.problems)


def test_images_outside_are_read_by_option_alone(tmp_path, image_file, table, read, ingested):
    image_file(tmp_path / "elsewhere" / "x.png"), image_file(tmp_path / "root" / "a.png")
    rows = [("a.png", "p1"), ("../elsewhere/x.png", "p2"), (tmp_path / "elsewhere" / "x.png", "p3")]
    table(tmp_path / "root" / "manifest.csv", "image,patient_id", rows)
    manifest, infos = ingested("csv", tmp_path / "root")
    assert len(infos) == 1
    (reason,) = manifest["counts"]["source_problems"]
    assert "outside_root" in reason and manifest["counts"]["source_problems"][reason] == 2
    assert len(read("csv", tmp_path / "root", outside_root=True).records) == 3
    table(tmp_path / "root" / "manifest.csv", "image,patient_id", rows[1:])
    with pytest.raises(UserError, match="outside_root"):
        read("csv", tmp_path / "root")


def test_a_link_that_leaves_the_archive_needs_the_option(tmp_path, image_file, table, read):
    """Farms of links within the root, as git-annex makes them, are in order; also a root that is a link itself."""
    root = tmp_path / "root"
    image_file(tmp_path / "store" / "x.png"), image_file(root / ".annex" / "objects" / "y.png")
    (root / "within").symlink_to(root / ".annex" / "objects")
    (root / "y.png").symlink_to(".annex/objects/y.png")
    (root / "leaves.png").symlink_to(tmp_path / "store" / "x.png")
    (root / "folder").symlink_to(tmp_path / "store")
    names = ["y.png", "within/y.png", "leaves.png", "folder/x.png", "within/../../../../store/x.png"]
    table(root / "manifest.csv", "image", [(name,) for name in names])
    (tmp_path / "alias").symlink_to(root)
    for place in (root, tmp_path / "alias"):
        assert [record.views[0].path for record in read("csv", place).records] == [place / name for name in names[:2]]
        assert len(read("csv", place, outside_root=True).records) == 5


def test_a_report_that_is_a_link_out_of_the_folder_is_not_read(tmp_path, image_file, read):
    image_file(tmp_path / "root" / "s" / "a.dcm")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root" / "s" / "a.txt").symlink_to(tmp_path / "secret.txt")
    archive = read("dicom-folder", tmp_path / "root")
    assert archive.records[0].report == "" and "outside" in archive.problems[0].reason
    assert read("dicom-folder", tmp_path / "root", outside_root=True).records[0].report == "secret"
    (tmp_path / "root" / "s" / "a.txt").unlink()
    with open(tmp_path / "root" / "s" / "a.txt", "wb") as file:
        file.truncate(2**40)
    archive = read("dicom-folder", tmp_path / "root")
    assert archive.records[0].report == "" and "too large" in archive.problems[0].reason


def test_remote_paths_stay_below_the_root():
    root = as_path("memory://bucket/archive")
    for name, under in {"a/b.png": True, "../other/b.png": False, "/etc/passwd": False, "a/../../b": False}.items():
        assert lies_under(root / name, root) is under
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/archive/manifest.csv", b"image\na.png\n/etc/hostname\n../b.png\n")
    (record,) = read_source("csv", root, SourceOptions()).records
    assert str(record.views[0].path) == "memory://bucket/archive/a.png"
    memory.store.clear()


def test_fifos_devices_and_endless_files_are_rejected_images(tmp_path, image_file, table, in_time):
    root = tmp_path / "root"
    image_file(root / "a.png")
    os.mkfifo(root / "fifo.png")
    (root / "zero.png").symlink_to("/dev/zero")
    with open(root / "sparse.png", "wb") as file:
        file.truncate(2**40)
    names = ["a.png", "fifo.png", "zero.png", "sparse.png", "folder.png", "/proc/self/maps", "/proc/kmsg"]
    (root / "folder.png").mkdir()
    table(root / "manifest.csv", "image", [(name,) for name in names])
    manifest = ingest(
        IngestConfig(
            source="csv", root=str(root), out=str(tmp_path / "out"), size=32, workers=1,
            key_file=str(tmp_path / "key"), options=SourceOptions(outside_root=True),
        )
    )  # fmt: skip
    assert manifest["counts"]["kept_studies"] == 1 and manifest["counts"]["rejected_images"] == len(names) - 1


def test_tables_and_key_files_must_be_regular_files(tmp_path, in_time):
    for name in ("t.csv", "t.txt", "key"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero").symlink_to("/dev/zero")
    for read in (
        lambda: read_table(tmp_path / "t.csv", ["a"], []), lambda: read_text(tmp_path / "t.txt"),
        lambda: load_key(str(tmp_path / "key")), lambda: load_key(str(tmp_path / "zero")),
    ):  # fmt: skip
        with pytest.raises(UserError):
            read()


def test_a_packed_table_is_bounded_after_inflation(tmp_path, monkeypatch):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\n" + b"0\n" * 100_000))
    assert len(read_table(tmp_path / "t.csv.gz", ["a"], [])) == 100_000
    monkeypatch.setattr("medunifier.data.sources.tables.MAX_TABLE_BYTES", 10_000)  # the file itself has fewer
    with pytest.raises(UserError, match="too large"):
        read_table(tmp_path / "t.csv.gz", ["a"], [])


def test_text_that_json_cannot_hold_is_a_problem_not_a_traceback(tmp_path, image_file, table, read):
    image_file(tmp_path / "a.png"), image_file(tmp_path / "b.png")
    table(tmp_path / "manifest.csv", "image,findings", [("a.png", "Clear."), ("b.png", "x\0y"), ("c\0.png", "")])
    archive = read("csv", tmp_path)
    assert len(archive.records) == 1 and len(archive.problems) == 2
    entry = {"id": "a", "split": "train", "image_path": ["a.png"], "report": "\ud800"}
    for report_text in ("\ud800", "x\0"):
        (tmp_path / "annotation.json").write_text(json.dumps({"train": [entry | {"report": report_text}]}))
        with pytest.raises(UserError, match=r"annotation\.json"):
            read("r2gen", tmp_path)
    (tmp_path / "annotation.json").write_text('{"train": ' + "[" * 200_000)
    with pytest.raises(UserError, match=r"annotation\.json"):
        read("r2gen", tmp_path)


def test_a_report_is_read_in_its_encoding_or_counted(tmp_path, image_file, read):
    text = "FINDINGS: Débâcle – clear."
    utf8, cp1252 = text.encode(), text.encode("cp1252")
    marked = [text.encode(name) for name in ("utf-8-sig", "utf-16", "utf-32")]
    intact = (utf8, cp1252, *marked, b"\xfe\xff" + text.encode("utf-16-be"), utf8 + b"\xef\xbb\xbf")
    damaged = (text.encode("utf-16-le"), utf8 + b"\0", utf8 + "\ufffd".encode(), b"FINDINGS: \x81 \xe9", b"\xff\xfex")
    for number, content in enumerate((*intact, *damaged)):
        image_file(tmp_path / f"{number:02}.dcm")
        (tmp_path / f"{number:02}.txt").write_bytes(content)
    archive = read("dicom-folder", tmp_path)
    assert [record.report for record in archive.records] == [text] * len(intact) + [""] * len(damaged)
    assert len(archive.problems) == len(damaged)


def test_byte_order_marks_and_damaged_characters_of_cells_do_not_reach_a_record(tmp_path, image_file, table, read):
    image_file(tmp_path / "a.png")
    cells = ("Clear\ufeff lungs.", "No\u2028 effusion\x85, none.", "Heart \ufffd normal.")
    table(tmp_path / "manifest.csv", "image,study_id,findings", [("a.png", n, cell) for n, cell in enumerate(cells)])
    archive = read("csv", tmp_path)
    assert [record.findings for record in archive.records] == ["Clear lungs.", cells[1]]
    assert len(archive.problems) == 1
    entry = {"id": "a", "split": "train", "image_path": ["a.png"]}
    image_file(tmp_path / "images" / "a.png")
    reports = ("\ufeffclear", "cl\ufffdear")
    entries = {"train": [entry | {"id": f"s{n}", "report": report} for n, report in enumerate(reports)]}
    (tmp_path / "annotation.json").write_text(json.dumps(entries))
    archive = read("r2gen", tmp_path)
    assert [record.findings for record in archive.records] == ["clear"] and len(archive.problems) == 1


def test_a_file_name_that_is_no_utf8_has_a_pseudonym(tmp_path, image_file):
    root = tmp_path / "root"
    image_file(root / "plain.dcm")
    image_file(root / "other.dcm").rename(root / os.fsdecode(b"M\xfcller.dcm"))
    config = IngestConfig(
        source="dicom-folder", root=str(root), out=str(tmp_path / "out"), size=32, workers=1,
        key_file=str(tmp_path / "key"),
    )  # fmt: skip
    assert ingest(config)["counts"]["kept_studies"] == 2
