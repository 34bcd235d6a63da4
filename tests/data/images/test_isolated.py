"""A file that crashes or hangs its decoder is refused, all others are kept, and ingest completes in one run."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.dicom import Radiograph
from medunifier.data.images.isolated import read_isolated
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_image
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.shared.errors import UserError

# The child is a new process, which monkeypatching does not reach, so these programs replace its code.
_CRASHING = """
import io, os, sys
request = sys.stdin.buffer.read()
if b"bad" in request:
    os.abort()
sys.stdin = io.TextIOWrapper(io.BytesIO(request))
from medunifier.data.images.isolated import decode_from_stdin
decode_from_stdin()
"""
_KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
_OFFLINE = """
import medunifier.data.images.radiograph
from medunifier.data.images.isolated import decode_from_stdin
from medunifier.shared.errors import UserError
def read_image(path, *options):
    raise UserError("the bucket does not answer")
medunifier.data.images.radiograph.read_image = read_image
decode_from_stdin()
"""
_GREEDY = """
import medunifier.data.images.radiograph
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.isolated import decode_from_stdin
def read_image(path, *options):
    try:
        bytearray(2**33)
    except MemoryError:
        raise UnreadableImage("too greedy") from None
medunifier.data.images.radiograph.read_image = read_image
decode_from_stdin()
"""
_SLEEPING = "import time\ntime.sleep(60)"

_forked = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="patches reach only forked workers")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    names = ["a", "b", "bad", "c", "d"]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tree / f"{name}.png")
    (tree / "manifest.csv").write_text("\n".join(["image", *(f"{name}.png" for name in names)]) + "\n")
    return tree


def test_isolated_and_direct_decoding_are_equal(tree: Path) -> None:
    direct, isolated = read_image(tree / "a.png", 32), read_isolated(tree / "a.png", 32)
    assert np.array_equal(direct.pixels, isolated.pixels) and direct.bits == isolated.bits
    (tree / "a.png").write_bytes(b"not an image")
    with pytest.raises(UnreadableImage, match="not a DICOM file"):
        read_isolated(tree / "a.png", 32)


def test_crash_hang_and_lack_of_memory_are_distinguished(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", _CRASHING)
    with pytest.raises(UnreadableImage, match="process"):
        read_isolated(tree / "bad.png", 32)
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", _SLEEPING)
    monkeypatch.setattr("medunifier.data.images.isolated.MAX_SECONDS", 1)
    with pytest.raises(UnreadableImage, match="1 seconds"):
        read_isolated(tree / "a.png", 32)
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", _KILLED)
    with pytest.raises(UserError, match="out of memory") as caught:
        read_isolated(tree / "a.png", 32)
    assert not isinstance(caught.value, UnreadableImage)
    monkeypatch.setattr("medunifier.data.images.isolated.MAX_SECONDS", 60)
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", _GREEDY)
    with pytest.raises(UnreadableImage, match="too greedy"):
        read_isolated(tree / "a.png", 32)
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", _OFFLINE)
    with pytest.raises(UserError, match="does not answer") as caught:
        read_isolated(tree / "a.png", 32)
    assert not isinstance(caught.value, UnreadableImage)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="patches reach only forked workers")
@pytest.mark.parametrize("how", ["crashes", "hangs"])
def test_ingest_survives_a_file_that_kills_its_worker(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def read(path: Path, *options: object) -> Radiograph:
        if "bad" in path.name:
            os._exit(1) if how == "crashes" else _spin()
        return read_image(path, *options)  # type: ignore[arg-type]

    monkeypatch.setattr("medunifier.data.ingest.shard_job.read_image", read)
    monkeypatch.setattr("medunifier.data.ingest.shard_job.MAX_SECONDS", 1)
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", _CRASHING)
    out = tmp_path / "out"
    manifest = ingest(IngestConfig(source="csv", root=str(tree), out=str(out), size=32, workers=2, shard_studies=2))
    assert not list(out.rglob(".partial-*")), "the dead worker left patient images"
    assert manifest["counts"]["kept_studies"] == 4
    ((reason, count),) = manifest["counts"]["reject_reasons"].items()
    assert "process" in reason and count == 1


def _spin() -> None:
    while True:
        time.sleep(1)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="patches reach only forked workers")
def test_workers_that_die_outside_decoding_stop_ingest(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunifier.data.ingest.shard_job.encode_png", lambda _: os._exit(1))
    with pytest.raises(UserError, match="a worker process died"):
        ingest(IngestConfig(source="csv", root=str(tree), out=str(tmp_path / "out"), size=32, workers=1))
    assert not list((tmp_path / "out").rglob(".partial-*"))
