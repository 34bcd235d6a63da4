"""Damaged DICOM files of every coding are decoded or refused, in bounded time and memory, without a crash."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_radiograph
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.data.shards.dataset import ShardDataset
from tests.data.dicom_samples import RAMP, SAMPLES, mutate, mutated_file, sample
from tests.files import read_csv


@pytest.mark.parametrize("name", SAMPLES)
def test_every_undamaged_sample_is_decoded(name: str, tmp_path: Path) -> None:
    """Otherwise the damaged versions would be refused for other reasons."""
    (tmp_path / "image.dcm").write_bytes(sample(name))
    pixels = read_radiograph(tmp_path / "image.dcm")
    assert pixels.std() > 0.1
    if name not in ("jpeg-ls", "tables"):
        shown = np.clip((RAMP.astype(float) - 10 - 2047.5) / 4095 + 0.5, 0, 1) if name != "signed-overlaid" else None
        tolerance = {"jpeg": 0.1, "jpeg-2000": 0.05}.get(name, 1e-5)
        assert shown is None or np.abs(pixels - shown).max() < tolerance


def _outcomes(begin: int, end: int, folder: Path, root: Path) -> Counter[str]:
    """How files ``begin`` … ``end`` were read; fails with the file's number where it must."""
    command = [sys.executable, "-m", "tests.data.images.read_mutated", str(begin), str(end), str(folder)]
    reader = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
    lines = reader.stdout.splitlines()
    last = lines[-1] if lines else "nothing"
    assert reader.returncode == 0, f"ended with {reader.returncode} at file {last}: {reader.stderr[-2000:]}"
    assert [line.split(" ", 1)[0] for line in lines] == [str(number) for number in range(begin, end)]
    bad = [line for line in lines if line.split(" ")[1] not in ("decoded", "refused") or "MemoryError" in line]
    assert not bad, bad[:10]
    return Counter(line.split(" ", 2)[1] for line in lines)


def test_six_hundred_damaged_files(tmp_path: Path, root: Path) -> None:
    outcomes = _outcomes(0, 600, tmp_path, root)
    # Damage that always or never has an effect would test nothing.
    assert outcomes["decoded"] > 100 and outcomes["refused"] > 100


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path, root: Path) -> None:
    _outcomes(600, 10_600, tmp_path, root)


@pytest.mark.slow
def test_damaged_real_files(shared_data, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(shared_data("dicom").rglob("*.dcm"))):
        data = path.read_bytes()
        for damage in range(3 if len(data) < 300_000 else 1):
            (tmp_path / "image.dcm").write_bytes(mutate(data, Random(1000 * number + damage)) if data else b"")
            try:
                pixels = read_radiograph(tmp_path / "image.dcm", 64)
            except UnreadableImage:
                continue
            assert pixels.dtype == np.float32 and 0 <= pixels.min() < pixels.max() <= 1


def test_ingest_accounts_for_every_damaged_file(tmp_path: Path) -> None:
    """Every file is either in the shards or in rejects.csv."""
    images = tmp_path / "images"
    images.mkdir()
    rows = ["image,patient_id,study_id"]
    for number in range(120):
        (images / f"{number}.dcm").write_bytes(mutated_file(number)[1])
        rows.append(f"{number}.dcm,p{number},s{number // 2}")
    (images / "manifest.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    config = IngestConfig(source="csv", root=str(images), out=str(out), size=16, workers=2, shard_studies=20)
    manifest = ingest(config)
    kept = sum(
        len(info["views"])
        for split, shards in manifest["splits"].items()
        if any(row["samples"] for row in shards.values())
        for info in ShardDataset(out, split).infos()
    )
    rejects = read_csv(out / "rejects.csv")
    assert kept + len(rejects) == 120 and min(kept, len(rejects)) > 20
    assert len({(row["study_id"], row["view"]) for row in rejects}) == len(rejects)
    assert all(row["reason"] for row in rejects)
