"""Identifiers planted in every part of a DICOM archive do not appear in any byte that ingest writes or prints."""

import csv
import io
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset

from medunifier.data.ingest.command import IngestConfig, ingest, main
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.command import run_command
from medunifier.shared.errors import UserError
from medunifier.stage1_tokenizer.cli import tokenize_shards as tokenize
from medunifier.stage1_tokenizer.frozen import export
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from tests.data.dicom_samples import RAMP, sample_dicom
from tests.files import read_csv
from tests.stage1_tokenizer.conftest import TINY


def _word(number: int) -> str:
    """Return a unique word of at most sixteen characters, valid in every VR and a substring of no other text."""
    return f"QZX{number:02d}WVJK"


# Attribute -> VR, in the order of the planted words. At least one of every text VR.
TEXTS = {
    "PatientName": "PN", "PatientID": "LO", "OtherPatientNames": "PN", "PatientAddress": "LO",
    "PatientMotherBirthName": "PN", "AccessionNumber": "SH", "StudyID": "SH", "ReferringPhysicianName": "PN",
    "InstitutionName": "LO", "InstitutionAddress": "ST", "StationName": "SH", "OperatorsName": "PN",
    "StudyDescription": "LO", "SeriesDescription": "LO", "ProtocolName": "LO", "DeviceSerialNumber": "LO",
    "ImageComments": "LT", "AdditionalPatientHistory": "LT", "DerivationDescription": "ST",
    "AcquisitionComments": "UT", "LongCodeValue": "UC", "RetrieveURL": "UR", "ScheduledStationAETitle": "AE",
    "ViewPosition": "CS", "BodyPartExamined": "CS", "Laterality": "CS",
}  # fmt: skip
NUMBERS = {"PatientBirthDate": "19370217", "StudyTime": "031759.271828", "AcquisitionDateTime": "20170931133759"}
UIDS = {
    "SOPInstanceUID": "1.2.840.7713.1",
    "StudyInstanceUID": "1.2.840.7713.2",
    "SeriesInstanceUID": "1.2.840.7713.3",
}
FOLDERS = tuple(_word(number) for number in (50, 51, 52, 53))
OTHERS = tuple(_word(number) for number in range(60, 68))


def _dataset() -> Dataset:
    dataset = sample_dicom()
    for number, (name, _) in enumerate(TEXTS.items()):
        setattr(dataset, name, _word(number))
    for name, value in (NUMBERS | UIDS).items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = UIDS["SOPInstanceUID"]
    dataset.file_meta.SourceApplicationEntityTitle = OTHERS[0]
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.840.7713.4"
    dataset.file_meta.PrivateInformation = OTHERS[1].encode() + b" "
    block = dataset.private_block(0x0033, "A MAKER", create=True)
    block.add_new(0x01, "LO", OTHERS[2])
    block.add_new(0x02, "OB", OTHERS[3].encode() + b" ")
    block.add_new(0x03, "UN", OTHERS[4].encode() + b" ")
    item = Dataset()
    item.PatientID = OTHERS[5]
    dataset.OtherPatientIDsSequence = [item]
    dataset.add_new(0x60000010, "US", RAMP.shape[0])
    dataset.add_new(0x60000011, "US", RAMP.shape[1])
    dataset.add_new(0x60000022, "LO", OTHERS[6])
    dataset.add_new(0x60003000, "OW", (OTHERS[7] * 20).encode()[:160])
    dataset.add_new(0xFFFCFFFC, "OB", OTHERS[7].encode() + b" ")
    return dataset


def _planted() -> list[str]:
    return [*map(_word, range(len(TEXTS))), *NUMBERS.values(), *UIDS.values(), "1.2.840.7713.4", *FOLDERS, *OTHERS]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """DICOM files with the identifiers in headers, folder names and file names, some of them damaged."""
    root = tmp_path / "archive"
    for number in range(9):
        folder = root / f"{FOLDERS[0]}-{number % 4}" / FOLDERS[1]
        folder.mkdir(parents=True, exist_ok=True)
        dataset = _dataset()
        dataset.PatientID += str(number % 4)
        dataset.StudyInstanceUID += f".{number}"
        path = folder / f"{FOLDERS[2]}_{number}.dcm"
        if number == 4:
            dataset.BurnedInAnnotation = "YES"
        elif number == 5:
            dataset.PhotometricInterpretation = FOLDERS[3]
        elif number == 6:
            dataset["Rows"]._value = 3
        dataset.save_as(path, enforce_file_format=True)
        data = path.read_bytes()
        if number == 7:
            data = data.replace(b"2048\\5", b"QZX00W")  # text in place of a number
        elif number == 8:
            data = data.replace(b"IS\x02\x001 ", b"IS\x02\x00QZ")
        path.write_bytes(_word(63).encode() + data[len(_word(63)) :])  # the preamble may hold anything
    png = root / FOLDERS[3] / f"{FOLDERS[2]}.dcm"
    png.parent.mkdir()
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    return root


def _all_bytes(folder: Path) -> bytes:
    """Return all bytes of files, of tar members, and of images as pixels and as decompressed chunks."""
    found = [str(path.relative_to(folder)).encode() for path in folder.rglob("*")]
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        found.append(path.read_bytes())
        if path.suffix != ".tar":
            continue
        with tarfile.open(path) as tar:
            for member in tar:
                found.append(repr(member.get_info()).encode())
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".png"):
                    found.append(np.asarray(Image.open(io.BytesIO(content))).tobytes())
                    found += _unpacked_chunks(content)
    return b"\n".join(found)


def _unpacked_chunks(png: bytes) -> list[bytes]:
    at, found = 8, []
    while at < len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + length]
        assert kind in (b"IHDR", b"IDAT", b"IEND"), f"a {kind!r} chunk, which could hold text"
        found.append(zlib.decompress(body) if kind == b"IDAT" else body)
        at += 12 + length
    return found


def _leaked(planted: list[str], output: bytes) -> list[str]:
    lower = output.lower()
    return [
        name
        for name in planted
        if any(name.lower().encode(code) in lower for code in ("ascii", "utf-16-le", "utf-16-be"))
        or name.encode().hex().encode() in lower
    ]


def test_no_planted_identifier_is_written_or_printed(archive: Path, tmp_path: Path, root: Path) -> None:
    planted = _planted()
    assert len(set(planted)) == len(planted) >= 40
    headers = b"".join(path.read_bytes() + str(path).encode() for path in archive.rglob("*") if path.is_file())
    assert not set(planted) - set(_leaked(planted, headers)), "not everything was planted"
    out = tmp_path / "out"
    arguments = ["--source", "dicom-folder", "--root", str(archive), "--out", str(out), "--size", "48"]
    command = [
        sys.executable,
        "-c",
        "import sys; from medunifier.data.ingest.command import main; main(sys.argv[1:])",
        *arguments,
    ]
    ran = subprocess.run(command, cwd=root, capture_output=True, check=True)
    printed = (ran.stdout + ran.stderr).replace(str(tmp_path).encode(), b"")
    assert not _leaked(planted, printed)
    assert not _leaked(planted, _all_bytes(out))
    rejects = read_csv(out / "rejects.csv")
    assert len(rejects) == 5, rejects  # four DICOM files, and the broken PNG
    assert ShardDataset(out, "train")[0].info["views"] == [""]


def test_token_shards_hold_no_planted_identifier(archive: Path, tmp_path: Path) -> None:
    shards, tokens = tmp_path / "out", tmp_path / "tokens"
    ingest(IngestConfig(source="dicom-folder", root=str(archive), out=str(shards), size=32, workers=1))
    torch.manual_seed(0)
    export(VQGAN(TINY).eval(), tmp_path / "tokenizer")
    arguments = ["--tokenizer", tmp_path / "tokenizer", "--shards", shards, "--out", tokens, "--threads", "1"]
    assert run_command(tokenize.main, list(map(str, arguments))) == 0
    assert list(tokens.glob("*.tar"))
    assert not _leaked(_planted(), _all_bytes(tokens))


def test_a_killed_ingest_leaves_no_planted_identifier(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medunifier.data.ingest.command._finish", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(IngestConfig(source="dicom-folder", root=str(archive), out=str(tmp_path / "out"), size=48, workers=1))
    assert list((tmp_path / "out" / ".ingest").glob("*.json"))
    assert not _leaked(_planted(), _all_bytes(tmp_path / "out"))


def test_find_prints_the_path_of_a_refused_file(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "dicom-folder", "--root", str(archive), "--workers", "1"]
    main([*arguments, "--out", str(tmp_path / "out"), "--size", "48"])
    with open(tmp_path / "out" / "rejects.csv", newline="") as file:
        refused = next(row for row in csv.DictReader(file) if "burned" in row["reason"])
    capsys.readouterr()
    main([*arguments, "--find", refused["study_id"]])
    expected = archive / f"{FOLDERS[0]}-0" / FOLDERS[1] / f"{FOLDERS[2]}_4.dcm"
    assert capsys.readouterr().out == f"{refused['study_id']} view {refused['view']}: {expected}\n"
    with pytest.raises(UserError, match="no study and no patient"):
        main([*arguments, "--find", "0" * 16])
