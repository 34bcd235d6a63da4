"""The written archive: MIMIC's layout, valid DICOM files, idempotent writing."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medunifier.data.images.radiograph import read_image
from medunifier.data.phantom import Phantom
from medunifier.data.phantom.command import PhantomConfig, main, write_archive
from medunifier.data.reports.labeler import label_report
from medunifier.shared.errors import UsageError, UserError
from tests.files import contents, read_csv

COUNT = 30


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "out"
    main(["--out", str(root), "--studies", str(COUNT), "--seed", "3", "--size", "40"])
    return root


def test_pixels_round_trip_with_every_kind_of_header(archive: Path) -> None:
    phantom, kinds = Phantom(40, 3), set()
    for index in range(COUNT):
        study = phantom.study(index)
        folder = archive / f"files/p{study.patient_id[:2]}/p{study.patient_id}/s{study.study_id}"
        path = folder / f"{study.dicom_ids[0]}.dcm"
        radiograph, header = read_image(path), pydicom.dcmread(path)
        assert np.abs(radiograph.pixels - study.images[0]).max() < 1.5 / (2**radiograph.bits - 1)
        assert radiograph.view in ("", study.views[0])
        assert folder.with_suffix(".txt").read_text() == study.report
        kinds.add((header.PhotometricInterpretation, header.BitsStored, "WindowCenter" in header))
        assert list(header.ImageType) == ["DERIVED", "SECONDARY"] and "Synthetic" in header.DerivationDescription
    assert len(kinds) >= 5 and len({photometric for photometric, _, _ in kinds}) == 2


def test_tables_match_files_reports_and_labels(archive: Path) -> None:
    records = read_csv(archive / "cxr-record-list.csv.gz")
    assert len(records) == COUNT and all((archive / row["path"]).is_file() for row in records)
    assert list(records[0]) == ["subject_id", "study_id", "dicom_id", "path"]
    studies = read_csv(archive / "cxr-study-list.csv.gz")
    metadata = {row["study_id"]: row for row in read_csv(archive / "mimic-cxr-2.0.0-metadata.csv.gz")}
    splits = {row["study_id"]: row["split"] for row in read_csv(archive / "mimic-cxr-2.0.0-split.csv.gz")}
    labels = {row["study_id"]: row for row in read_csv(archive / "mimic-cxr-2.0.0-chexpert.csv.gz")}
    assert set(splits.values()) == {"train", "validate", "test"}
    for row in studies:
        cells = {name: value for name, value in labels[row["study_id"]].items() if value and not name.endswith("_id")}
        text = (archive / row["path"]).read_text()
        assert {name: int(float(value)) for name, value in cells.items()} == label_report(text, "chexpert")
        assert metadata[row["study_id"]]["ViewPosition"] in ("PA", "AP")
        assert metadata[row["study_id"]]["Rows"] == "40"


def test_study_dates_increase_with_a_patients_visits(archive: Path) -> None:
    dates = {row["study_id"]: row["StudyDate"] for row in read_csv(archive / "mimic-cxr-2.0.0-metadata.csv.gz")}
    visits: dict[str, list[str]] = {}
    for index in range(COUNT):
        study = Phantom(32, 3).study(index)
        visits.setdefault(study.patient_id, []).append(dates[study.study_id])
    assert all(found == sorted(set(found)) for found in visits.values())


def test_two_workers_write_the_same_bytes_and_a_second_run_writes_nothing(archive: Path, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "b"), "--studies", str(COUNT), "--seed", "3", "--size", "40"]
    main([*arguments, "--workers", "2"])
    assert contents(tmp_path / "b") == contents(archive)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")}
    main(arguments)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")}


def test_an_interrupted_run_is_completed(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PhantomConfig(out=tmp_path / "c", studies=COUNT, seed=3, size=40)
    real, done = Phantom.study, []

    def failing(self: Phantom, index: int) -> object:
        if index == 17:
            raise KeyboardInterrupt
        done.append(index)
        return real(self, index)

    monkeypatch.setattr(Phantom, "study", failing)
    with pytest.raises(KeyboardInterrupt):
        write_archive(config)
    assert len(done) == 17 and not list(tmp_path.rglob("*.csv.gz"))
    monkeypatch.setattr(Phantom, "study", real)
    write_archive(config)
    assert contents(tmp_path / "c") == contents(archive)


def test_other_settings_occupied_folders_and_invalid_options_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other settings"):
        main(["--out", str(archive), "--studies", "31", "--seed", "3", "--size", "40"])
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="not empty"):
        main(["--out", str(tmp_path), "--studies", "2"])
    for wrong in (["--studies", "0"], ["--studies", "2", "--size", "8"], ["--studies", "2", "--sed", "1"]):
        with pytest.raises(UsageError):
            main(["--out", str(tmp_path / "x"), *wrong])


def test_openi_headers_preserve_pixels_views_and_sizes(tmp_path: Path) -> None:
    """With the formats, windows, machines and transfer syntaxes of Open-I, decoding returns the generated pixels."""
    root, count = tmp_path / "full", 60
    options = ["--lateral_fraction", "0.6", "--history", "true", "--headers", "openi", "--workers", "2"]
    main(["--out", str(root), "--studies", str(count), "--seed", "3", "--size", "40", *options])
    phantom, attributes = Phantom(40, 3, lateral_fraction=0.6, history=True), []
    metadata = {row["dicom_id"]: row for row in read_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz")}
    for index in range(count):
        study = phantom.study(index)
        folder = root / f"files/p{study.patient_id[:2]}/p{study.patient_id}/s{study.study_id}"
        for view, dicom_id, image in zip(study.views, study.dicom_ids, study.images, strict=True):
            path = folder / f"{dicom_id}.dcm"
            radiograph, header, row = read_image(path), pydicom.dcmread(path), metadata[dicom_id]
            rows, columns = radiograph.pixels.shape
            top, left = (40 - rows) // 2, (40 - columns) // 2
            middle = image[top : top + rows, left : left + columns]
            assert np.abs(radiograph.pixels - middle).max() < 1.5 / 1000
            assert (row["Rows"], row["Columns"], row["ViewPosition"]) == (str(rows), str(columns), view)
            assert 300 < 40 * float(header.ImagerPixelSpacing[0]) < 520  # longer side in millimetres
            assert "Synthetic" in header.DerivationDescription
            attributes.append((
                header.PhotometricInterpretation, header.BitsStored, header.file_meta.TransferSyntaxUID,
                rows > columns, rows < columns, radiograph.view,
            ))  # fmt: skip
    inverse, bits, syntaxes, portrait, landscape, views = (set(column) for column in zip(*attributes, strict=True))
    assert len(inverse) == 2 and {12, 15} <= bits and len(syntaxes) >= 3 and len(portrait) == len(landscape) == 2
    assert {"PA", "AP", "LL"} <= views


def test_the_manifest_omits_options_at_their_default(archive: Path) -> None:
    assert set(json.loads((archive / "phantom.json").read_text())) == {
        "version", "studies", "seed", "size", "findings", "complete",
    }  # fmt: skip
    with pytest.raises(UserError, match="other settings"):
        main(["--out", str(archive), "--studies", str(COUNT), "--seed", "3", "--size", "40", "--history", "true"])
