"""PNG and JPEG radiographs, and fitting to a square."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_image, read_radiograph
from medunifier.data.images.resize import Geometry, fit_square
from tests.data.dicom_samples import RAMP
from tests.data.images.test_dicom import dicom_dataset, saved

GREY = (np.arange(40 * 32).reshape(40, 32) % 256).astype(np.uint8)


def test_png_of_8_and_16_bits(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(read_radiograph(tmp_path / "a.png"), GREY.astype(np.float32) / np.float32(255))
    deep = GREY.astype(np.uint16) * 256 + 77
    Image.fromarray(deep).save(tmp_path / "b.png")
    radiograph = read_image(tmp_path / "b.png")
    assert np.allclose(radiograph.pixels, deep / 65535, atol=1e-7) and radiograph.bits == 16


def test_the_file_type_follows_from_its_content(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.dcm")
    assert read_radiograph(tmp_path / "a.dcm").shape == (40, 32)


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_radiograph(tmp_path / "a.jpg") - smooth / 255).max() < 0.02


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_images_in_other_pixel_formats(tmp_path: Path, mode: str) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    assert np.allclose(read_radiograph(tmp_path / "a.png"), GREY / 255, atol=1e-6)


def test_a_small_coloured_arrow_is_accepted_and_a_colour_image_is_not(tmp_path: Path) -> None:
    rgb = np.repeat(GREY[:, :, None], 3, axis=2)
    rgb[:3, :4] = (255, 0, 0)  # 12 of 1,280 pixels
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert read_radiograph(tmp_path / "a.png").shape == (40, 32)
    rgb[:20] = (255, 0, 0)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="colour"):
        read_radiograph(tmp_path / "a.png")


def test_unreadable_images_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        read_radiograph(path)
    for content, reason in (
        (b"", "empty"),
        (b"hello" * 100, "not a DICOM"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableImage, match=reason):
            read_radiograph(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UnreadableImage, match="truncated|broken|PNG"):
        read_radiograph(path)
    Image.fromarray(GREY[:8]).save(path)
    with pytest.raises(UnreadableImage, match="too small"):
        read_radiograph(path)
    Image.fromarray(np.zeros_like(GREY)).save(path)
    with pytest.raises(UnreadableImage, match="constant"):
        read_radiograph(path)
    half = np.dstack([GREY, np.full_like(GREY, 128)])
    Image.fromarray(half, mode="LA").save(path)
    with pytest.raises(UnreadableImage, match="transparent"):
        read_radiograph(path)


@pytest.mark.parametrize("format_", ["png", "jpg"])
def test_the_orientation_of_exif_is_applied(tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"a.{format_}"
    for orientation in range(10):  # 0 and 9 are invalid
        image = Image.fromarray(GREY)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(path, exif=exif)
        with Image.open(path) as stored:
            upright = np.asarray(ImageOps.exif_transpose(stored)) / 255
        found = read_image(path)
        assert np.allclose(found.pixels, upright, atol=1e-6) and found.stored == (40, 32), orientation
        assert np.array_equal(read_radiograph(path, 20), fit_square(found.pixels, 20))


def test_damaged_exif_leaves_the_image_as_stored(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        for exif in (b"none of it", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff"):
            Image.fromarray(GREY).save(tmp_path / name, exif=b"Exif\0\0" + exif)
            assert read_radiograph(tmp_path / name).shape == (40, 32), (name, exif)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"PixelAspectRatio": [2, 1]}, (64, 40)),  # pixels twice as high as wide
        ({"PixelAspectRatio": [1, 2]}, (32, 80)),
        ({"PixelSpacing": [0.2, 0.16]}, (40, 40)),
        ({"ImagerPixelSpacing": [0.15, 0.3]}, (32, 80)),
        ({"NominalScannedPixelSpacing": [0.3, 0.2]}, (48, 40)),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, (32, 40)),  # the spacing takes precedence
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [2, 1]}, (64, 40)),
        ({"PixelSpacing": [0.1500, 0.1501]}, (32, 40)),
        ({"PixelSpacing": [0.15]}, (32, 40)),
        ({"PixelAspectRatio": [1, 0]}, (32, 40)),
    ],
)
def test_pixels_become_square(tmp_path: Path, changes: dict[str, list[float]], shape: tuple[int, int]) -> None:
    found = read_image(saved(dicom_dataset(**changes), tmp_path / "a.dcm"))
    assert found.pixels.shape == shape and found.stored == (32, 40)
    plain = Image.fromarray((RAMP / 4095).astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC)
    assert np.allclose(found.pixels, np.clip(plain, 0, 1), atol=1e-5)


def test_a_circle_is_round_whatever_the_pixels(tmp_path: Path) -> None:
    for vertical, horizontal in ((1.0, 1.0), (2.0, 1.0), (1.0, 1.7)):
        rows, columns = np.ogrid[: round(90 / vertical), : round(90 / horizontal)]
        disc = np.hypot((rows + 0.5) * vertical - 45, (columns + 0.5) * horizontal - 45) < 30
        ds = dicom_dataset(PixelSpacing=[vertical, horizontal], PixelData=(disc * 4095).astype("<u2").tobytes())
        ds.Rows, ds.Columns = disc.shape
        found = read_radiograph(saved(ds, tmp_path / "a.dcm"), 90) > 0.5
        assert [abs(int(found.any(axis=axis).sum()) - 60) <= 2 for axis in (0, 1)] == [True, True]


@pytest.mark.parametrize("ratio", [[1000, 1], [1, 1000]])
def test_an_implausible_pixel_is_refused(tmp_path: Path, ratio: list[int]) -> None:
    with pytest.raises(UnreadableImage, match="aspect"):
        read_radiograph(saved(dicom_dataset(PixelAspectRatio=ratio), tmp_path / "a.dcm"))


def test_square_pixels_of_a_huge_image_are_refused_before_memory_is_allocated() -> None:
    with pytest.raises(UnreadableImage, match="too large"):
        Geometry(aspect=8.0).apply(np.broadcast_to(np.float32(0), (4000, 4000)))


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("truncated")))
    assert isinstance(error, UnreadableImage) and error.reason == str(error) == "truncated"


def test_fitting_keeps_aspect_and_pads_with_black() -> None:
    square = fit_square(np.ones((100, 50), np.float32), 20)
    assert square.shape == (20, 20)
    assert np.array_equal(square.max(axis=0) > 0.5, [False] * 5 + [True] * 10 + [False] * 5)


def test_shrinking_is_anti_aliased() -> None:
    """A checkerboard becomes its mean, without moiré."""
    board = (np.indices((512, 512)).sum(axis=0) % 2).astype(np.float32)
    small = fit_square(board, 64)
    assert np.abs(small[4:-4, 4:-4] - 0.5).max() < 0.02


@settings(max_examples=50, deadline=None)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(1, 70))
def test_fit_square_for_any_shape(height: int, width: int, size: int) -> None:
    pixels = np.random.default_rng(height * width).random((height, width), dtype=np.float32)
    square = fit_square(pixels, size)
    assert square.shape == (size, size) and square.dtype == np.float32
    assert square.min() >= 0 and square.max() <= 1


def test_real_files(shared_data: Callable[[str], Path]) -> None:
    files = sorted(shared_data("radiographs").rglob("*.[pj][np]g"))
    assert len(files) > 1000
    for path in files[::60]:
        try:
            assert read_radiograph(path, 64).shape == (64, 64)
        except UnreadableImage as error:
            assert "constant" in error.reason or "colour" in error.reason
