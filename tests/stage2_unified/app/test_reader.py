"""The child process reads like the library, survives unreadable files, and is restarted when it hangs."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_radiograph
from medunifier.stage2_unified.app.reader import RadiographReader


@pytest.fixture
def image_file(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_the_child_process_survives_an_unreadable_file(image_file, tmp_path):
    reader = RadiographReader()
    (tmp_path / "text.png").write_text("not an image")
    assert np.array_equal(reader.read(image_file, 32).pixels, read_radiograph(image_file, 32))
    child = reader._child.pid
    with pytest.raises(UnreadableImage, match="not a DICOM file"):
        reader.read(tmp_path / "text.png", 32)
    assert reader.read(image_file, 16).pixels.shape == (16, 16) and reader._child.pid == child


def test_a_hanging_child_process_is_restarted(image_file):
    reader = RadiographReader()
    reader.read(image_file, 16)
    os.kill(reader._child.pid, signal.SIGSTOP)  # hang, as a codec may
    reader._seconds = 0.2
    with pytest.raises(UnreadableImage, match="0.2 seconds"):
        reader.read(image_file, 16)
    reader._seconds = 30
    assert reader.read(image_file, 16).pixels.shape == (16, 16)
