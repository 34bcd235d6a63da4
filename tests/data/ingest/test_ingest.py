import json

import numpy as np
import pydicom
import pytest
from PIL import Image

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.ingest.pseudonyms import load_key, pseudonym
from medunifier.data.ingest.splits import assign_splits
from medunifier.data.phantom.command import PhantomConfig, write_archive
from medunifier.data.records import StudyRecord
from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.sources import SourceOptions, read_source
from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from tests.files import contents, read_csv


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    write_archive(PhantomConfig(out=root / "tree", studies=40, seed=3, size=48))
    return root / "tree"


def config(root, out, **changes):
    return IngestConfig(
        **{"source": "phantom", "root": str(root), "out": str(out), "size": 48, "workers": 1} | changes
    )


def test_manifest_matches_the_shards(archive, tmp_path):
    manifest = ingest(config(archive, tmp_path / "out", shard_studies=10))
    assert sum(row["samples"] for rows in manifest["splits"].values() for row in rows.values()) == 40
    for rows in manifest["splits"].values():
        for name, row in rows.items():
            assert sha256_file(tmp_path / "out" / name) == row["sha256"]
            assert (tmp_path / "out" / name).stat().st_size == row["bytes"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    sample = ShardDataset(tmp_path / "out", "train")[0]
    assert set(sample.info) == {"study_id", "patient_id", "views", "split", "report", "labels", "source", "visit"}
    assert set(sample.info["report"]) == {"findings", "impression", "text"}
    assert sample.images[0].shape == (48, 48) and sample.images[0].dtype == np.uint8


def test_any_number_of_workers_writes_the_same_bytes(archive, tmp_path):
    ingest(config(archive, tmp_path / "one", shard_studies=7))
    ingest(config(archive, tmp_path / "two", shard_studies=7, workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_second_run_changes_nothing_and_other_options_are_refused(archive, tmp_path, capsys):
    ingest(config(archive, tmp_path / "out"))
    before = contents(tmp_path / "out")
    ingest(config(archive, tmp_path / "out"))
    assert "complete already" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    with pytest.raises(UserError, match="other settings"):
        ingest(config(archive, tmp_path / "out", size=64))


def test_no_identifier_of_the_archive_is_written(archive, tmp_path):
    ingest(config(archive, tmp_path / "out"))
    records = read_source("phantom", archive, SourceOptions()).records
    names = {record.study_id for record in records} | {record.patient_id for record in records}
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not [name for name in names if name.encode() in written]
    assert str(archive).encode() not in written


def test_unreadable_images_are_rejected_with_a_reason_and_never_replaced(tmp_path, capsys):
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:200])
    Image.fromarray(np.full((40, 30), 9, dtype=np.uint8)).save(root / "2.png")
    rows = ["image,patient_id,study_id,findings"] + [f"{n}.png,p{n},s{n},Lungs are clear." for n in range(5)]
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    manifest = ingest(config(root, tmp_path / "out", source="csv"))
    assert manifest["counts"]["kept_studies"] == 2 and manifest["counts"]["rejected_images"] == 3
    rejects = read_csv(tmp_path / "out" / "rejects.csv")
    assert len(rejects) == 3 and all(row["reason"] for row in rejects)
    printed = capsys.readouterr().err
    assert "constant image" in printed
    assert ".png" not in printed  # logs are kept and shared; --find prints the path


def test_a_source_without_a_readable_image_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.dcm").write_bytes(b"no dicom")
    with pytest.raises(UserError, match="no readable radiograph"):
        ingest(config(tmp_path / "tree", tmp_path / "out", source="dicom-folder"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no radiograph found"):
        (tmp_path / "empty").mkdir()
        ingest(config(tmp_path / "empty", tmp_path / "out", source="dicom-folder"))
    with pytest.raises(UserError, match=r"record-list"):
        ingest(config(tmp_path / "empty", tmp_path / "out"))


def test_sixteen_bit_shards_keep_sixteen_bits(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    ramp = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(ramp).save(root / "a.png")
    (root / "manifest.csv").write_text("image\na.png\n")
    ingest(config(root, tmp_path / "out", source="csv", bits=16, validate_fraction=0.0, test_fraction=0.0))
    stored = ShardDataset(tmp_path / "out", "train")[0].images[0]
    assert stored.dtype == np.uint16 and np.abs(stored.astype(int) - ramp).max() <= 1


def test_csv_columns_sections_labels_and_splits(tmp_path):
    (tmp_path / "t.csv").write_text(
        "file,patient_id,study_id,view,findings,impression,labels,split\n"
        "a.png,p,1,PA,Heart is big.,,Effusion|Hernia,val\n"
        "b.png,p,1,LATERAL,Heart is big.,,Cardiomegaly,val\n"
        "c.png,,2,AP,,Normal.,,train\n"
    )
    first, second = read_source("csv", tmp_path, SourceOptions(image="file")).records
    assert [view.position for view in first.views] == ["PA", "LATERAL"]
    assert (first.findings, first.impression, first.split) == ("Heart is big.", "", "validate")
    assert first.labels == {"Pleural Effusion": 1, "Cardiomegaly": 1}  # hernia is not one of the fourteen
    assert second.labels is None and second.patient_id != first.patient_id
    with pytest.raises(UserError, match="image.*file"):
        read_source("csv", tmp_path, SourceOptions())


def test_dicom_folder_groups_by_header_and_finds_reports(archive, tmp_path):
    files = sorted(archive.rglob("*.dcm"))[:3]
    for name, source, study in (("a", 0, "1.2.1"), ("b", 1, "1.2.1"), ("c", 2, "1.2.2")):
        radiograph = pydicom.dcmread(files[source])
        radiograph.PatientID, radiograph.StudyInstanceUID = "one", study
        radiograph.save_as(tmp_path / f"{name}.dcm")
    (tmp_path / "a.txt").write_text("Lungs are clear.")
    both, single = read_source("dicom-folder", tmp_path, SourceOptions()).records
    assert len(both.views) == 2 and both.report == "Lungs are clear." and both.patient_id == single.patient_id
    assert len(single.views) == 1 and single.report == ""


def test_patients_are_not_divided_and_a_growing_archive_keeps_its_splits():
    key = bytes(32)
    few = [StudyRecord(f"s{n}", f"p{n // 2}", ()) for n in range(400)]
    many = few + [StudyRecord(f"t{n}", f"q{n}", ()) for n in range(400)]
    small = {record.study_id: record.split for record in assign_splits(few, key, 0.1, 0.2)}
    large = {record.study_id: record.split for record in assign_splits(many, key, 0.1, 0.2)}
    assert all(small[f"s{n}"] == small[f"s{n + 1}"] for n in range(0, 400, 2))
    # Only the patients with the lowest and highest value may move: they fill splits that would be empty.
    assert sum(small[name] != large[name] for name in small) <= 4
    fractions = [list(small.values()).count(split) / 400 for split in ("train", "validate", "test")]
    assert fractions == pytest.approx([0.7, 0.1, 0.2], abs=0.07)


def test_small_archives_have_all_three_splits():
    records = [StudyRecord(f"s{n}", f"p{n}", ()) for n in range(3)]
    assert {record.split for record in assign_splits(records, bytes(32), 0.1, 0.1)} == {"train", "validate", "test"}


def test_an_official_split_that_leaks_a_patient_is_refused():
    records = [
        StudyRecord("study-0", "other", (), split="train"),
        StudyRecord("study-a", "Miller", (), split="train"),
        StudyRecord("study-b", "Miller", (), split="test"),
    ]
    with pytest.raises(UserError, match="2 and 3.*train.*test") as caught:
        assign_splits(records, bytes(32), 0.1, 0.1)
    assert not [name for name in ("Miller", "study-") if name in str(caught.value)]
    with pytest.raises(UserError, match="study 1.*train, validate, test"):
        assign_splits([StudyRecord("study-a", "p", (), split="Miller")], bytes(32), 0.1, 0.1)


def test_pseudonyms_need_the_key(tmp_path):
    key = load_key(str(tmp_path / "key"))
    assert load_key(str(tmp_path / "key")) == key and (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert pseudonym(key, "patient", "p1") == pseudonym(key, "patient", "p1")
    assert pseudonym(key, "patient", "p1") != pseudonym(key, "study", "p1")
    assert pseudonym(load_key(str(tmp_path / "other")), "patient", "p1") != pseudonym(key, "patient", "p1")
    (tmp_path / "broken").write_text("zz")
    with pytest.raises(UserError, match="not a key file"):
        load_key(str(tmp_path / "broken"))


def test_a_machine_without_a_home_folder_needs_a_key_file(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    with pytest.raises(UserError, match="--key_file"):
        load_key("~/.config/medunifier/pseudonym.key")
