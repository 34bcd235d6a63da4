"""Only findings and impression of a report are written to shards by default, for any source."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.shared.errors import UserError
from tests.data.dicom_samples import sample_dicom

SECRET = "Millerson"
FULL = f"HISTORY: {SECRET}, 65M.\n\nFINDINGS: The lungs are clear.\n\nIMPRESSION: No effusion."
HEADERLESS = f"{SECRET} has clear lungs."
OTHER = f"INDICATION: cough\n\nLungs of {SECRET}, clear."


def _dicom_folder(root: Path, texts: list[str]) -> None:
    for number, text in enumerate(texts):
        dataset: pydicom.Dataset = sample_dicom()
        dataset.PatientID, dataset.StudyInstanceUID = f"p{number}", f"1.2.{number}"
        dataset.save_as(root / f"{number}.dcm", enforce_file_format=True)
        (root / f"{number}.txt").write_text(text)


def _table(column: str) -> Callable[[Path, list[str]], None]:
    def write(root: Path, texts: list[str]) -> None:
        _dicom_folder(root, texts)
        rows = [f'{number}.dcm,p{number},"{text}"\n' for number, text in enumerate(texts)]
        (root / "manifest.csv").write_text(f"image,patient_id,{column}\n" + "".join(rows))

    return write


def _r2gen(root: Path, texts: list[str]) -> None:
    (root / "images").mkdir()
    _dicom_folder(root / "images", texts)
    entries = [
        {"id": f"s{n}", "report": t, "image_path": [f"{n}.dcm"], "split": "train"} for n, t in enumerate(texts)
    ]
    (root / "annotation.json").write_text(json.dumps({"train": entries}))


def _config(root: Path, source: str, **changes: object) -> IngestConfig:
    options = {"source": source, "root": str(root), "out": str(root.parent / "out"), "size": 32, "workers": 1}
    return IngestConfig(**{**options, "duplicates": "ignore", **changes})  # type: ignore[arg-type]


def _infos(out: Path) -> list[dict]:
    infos = []
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            infos += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return infos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("dicom-folder", _dicom_folder),
        ("csv", _table("text")),
        ("csv", _table("findings")),
        ("r2gen", _r2gen),
    ],
)
def test_the_clinical_history_is_not_written(
    root: Path, source: str, write: Callable[[Path, list[str]], None]
) -> None:
    write(root, [FULL, FULL.replace("HISTORY", "Clinical History"), FULL.replace("\n\n", " ")])
    ingest(_config(root, source))
    infos = _infos(root.parent / "out")
    assert [info["report"]["findings"] for info in infos] == ["The lungs are clear."] * 3
    assert not [path for path in (root.parent / "out").rglob("*") if SECRET.encode() in path.read_bytes()]


def test_reports_without_headers_are_counted_and_left_out_by_default(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _dicom_folder(root, [FULL, HEADERLESS, HEADERLESS, OTHER, ""])
    manifest = ingest(_config(root, "dicom-folder"))
    assert manifest["counts"]["reports_without_headers"] == 2
    assert manifest["counts"]["reports_without_findings_or_impression"] == 1
    assert "2 reports without section headers" in capsys.readouterr().err
    texts = sorted(info["report"]["text"] for info in _infos(root.parent / "out"))
    assert texts == ["", "", "", "", "The lungs are clear. No effusion."]
    with pytest.raises(UserError, match="other settings"):
        ingest(_config(root, "dicom-folder", unsectioned="findings"))
    used = root.parent / "used"
    manifest = ingest(_config(root, "dicom-folder", unsectioned="findings", out=str(used)))
    assert manifest["transform"]["unsectioned"] == "findings"
    assert manifest["counts"]["reports_without_headers"] == 2
    texts = [info["report"]["findings"] for info in _infos(used)]
    assert texts.count(HEADERLESS) == 2 and OTHER.partition("\n\n")[2] in texts
