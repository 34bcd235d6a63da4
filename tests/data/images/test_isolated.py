"""Isolated decoding equals direct decoding, and a file that crashes or hangs its decoder is refused alone."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.dicom import Radiograph
from medunifier.data.images.isolated import IsolatedReader
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_image
from medunifier.data.ingest.command import IngestConfig, ingest
from medunifier.shared.errors import UserError

# The child is a new process, which monkeypatching does not reach, so these programs replace its code.
_PATCHED = """
import medunifier.data.images.radiograph as radiograph
from medunifier.data.images.isolated import serve_requests
from medunifier.data.images.pixels import UnreadableImage
from medunifier.shared.errors import UserError
import os
original = radiograph.read_image
def read_image(path, *options):
{body}
    return original(path, *options)
radiograph.read_image = read_image
serve_requests()
"""
_CRASHING = _PATCHED.format(body="    if 'bad' in path.name: os.abort()")
_KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
_OFFLINE = _PATCHED.format(body="    raise UserError('the bucket does not answer')")
_GREEDY = _PATCHED.format(
    body="""
    try:
        bytearray(2**33)
    except MemoryError:
        raise UnreadableImage("too greedy") from None
"""
)

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


@pytest.fixture
def reader() -> Iterator[IsolatedReader]:
    with IsolatedReader() as reader:
        yield reader


def test_isolated_and_direct_decoding_are_equal_in_one_child(tree: Path, reader: IsolatedReader) -> None:
    direct, isolated = read_image(tree / "a.png", 32), reader.read(tree / "a.png", 32)
    assert np.array_equal(direct.pixels, isolated.pixels) and direct.bits == isolated.bits
    child = reader._child
    (tree / "b.png").write_bytes(b"not an image")
    with pytest.raises(UnreadableImage, match="not a DICOM file"):
        reader.read(tree / "b.png", 32)
    assert reader.read(tree / "c.png", 16).pixels.shape == (16, 16) and reader._child is child


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        (_CRASHING, UnreadableImage, "crashes"),
        (_KILLED, UserError, "out of memory"),
        (_GREEDY, UnreadableImage, "too greedy"),
        (_OFFLINE, UserError, "does not answer"),
    ],
)
def test_a_failure_of_the_child_becomes_the_right_error(
    tree: Path, reader: IsolatedReader, monkeypatch: pytest.MonkeyPatch, program: str, kind: type, message: str
) -> None:
    monkeypatch.setattr("medunifier.data.images.isolated._CHILD", program)
    with pytest.raises(UserError, match=message) as caught:
        reader.read(tree / "bad.png", 32)
    assert type(caught.value) is kind
    if program == _CRASHING:
        assert reader.read(tree / "a.png", 32).pixels.shape == (32, 32), "no new child was started"


def test_a_hanging_child_is_killed_and_replaced(tree: Path, reader: IsolatedReader) -> None:
    reader.read(tree / "a.png", 16)
    assert reader._child is not None
    os.kill(reader._child.pid, signal.SIGSTOP)  # hang, as a codec may
    reader._seconds = 0.2
    with pytest.raises(UnreadableImage, match="0.2 seconds"):
        reader.read(tree / "a.png", 16)
    reader._seconds = 60
    assert reader.read(tree / "a.png", 16).pixels.shape == (16, 16)


def test_closing_the_reader_ends_its_child(tree: Path) -> None:
    with IsolatedReader() as reader:
        reader.read(tree / "a.png", 16)
        child = reader._child
    assert child is not None and child.returncode is not None and reader._child is None


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
