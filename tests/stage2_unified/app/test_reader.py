"""The child reads as the reader itself does, outlives refusals, and is replaced when it dies."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_radiograph
from medunifier.stage2_unified.app.reader import FilmReader


@pytest.fixture
def film(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def test_it_reads_refuses_and_reads_again(film, tmp_path):
    reader = FilmReader()
    (tmp_path / "text.png").write_text("no film")
    assert np.array_equal(reader.read(film, 32).pixels, read_radiograph(film, 32))
    child = reader._child.pid
    with pytest.raises(UnreadableImage, match="not a DICOM file"):
        reader.read(tmp_path / "text.png", 32)
    assert reader.read(film, 16).pixels.shape == (16, 16) and reader._child.pid == child


def test_a_dead_child_refuses_one_film_and_a_new_one_reads_the_next(film):
    reader = FilmReader()
    reader.read(film, 16)
    os.kill(reader._child.pid, signal.SIGSTOP)  # it hangs, as a codec may
    reader._seconds = 0.2
    with pytest.raises(UnreadableImage, match="0.2 seconds"):
        reader.read(film, 16)
    reader._seconds = 30
    assert reader.read(film, 16).pixels.shape == (16, 16)
