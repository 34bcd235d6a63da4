"""Read radiographs from DICOM, PNG and JPEG files as grey levels in [0, 1]."""

import re
import warnings
from collections.abc import Collection
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import ExifTags, Image

from medunifier.data.files.kinds import HEAD_BYTES, kind_of
from medunifier.data.images.dicom import MAX_FILE_BYTES, Radiograph, Windowing, decode_dicom
from medunifier.data.images.pixels import UnreadableImage, check_not_constant, check_size
from medunifier.data.images.resize import Fit, Geometry, fit_square
from medunifier.data.remote_paths import as_path, read_at_most

# The channels of a grey image saved as RGB differ by JPEG's rounding, and where an arrow or caption was added in
# colour. Those of a colour image (a screenshot, a stained print) differ nearly everywhere.
_GREY_TOLERANCE = 16
_MAX_COLOURED_FRACTION = 0.01


def read_radiograph(path: str | Path, size: int | None = None) -> ndarray:
    """Read a DICOM (plain or gzipped), PNG or JPEG radiograph; the format is detected from the content, not the name.

    Args:
        path: the image file.
        size: side of the square to fit the image to (aspect ratio kept, padded with black, anti-aliased). None
            keeps the stored size, except that pixels which are not square are made square.

    Returns:
        (H, W) or (size, size) float32 in [0, 1], bones bright, turned as EXIF states. DICOM values are scaled by the
        window, or else by the bit depth (see `medunifier.data.images.lut`), PNG and JPEG by 255 or 65,535. RGB files
        are converted if their channels agree within 16 of 255 on 99 % of the pixels.

    Raises:
        UnreadableImage: with a short reason; nothing is repaired by guessing.
    """
    return read_image(path, size).pixels


def read_image(
    path: str | Path, size: int | None = None, fit: Fit = "pad", window: Windowing = "header"
) -> Radiograph:
    """Read an image as `read_radiograph` does, with view, modality and body part of a DICOM header.

    Args:
        path, size: as in `read_radiograph`.
        fit: how to fit the image to a square, see :func:`medunifier.data.images.resize.fit_square`.
        window: windowing of DICOM files; PNG and JPEG have none.
    """
    try:
        data = read_at_most(as_path(path), MAX_FILE_BYTES)
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror or type(error).__name__}") from error
    kind = kind_of(data[:HEAD_BYTES])
    if kind == "png" or kind == "jpeg":
        radiograph = _read_png_or_jpeg(data, kind.upper())
    else:
        radiograph = decode_dicom(data, window)
    if size is None:
        return radiograph
    pixels = fit_square(radiograph.pixels, size, fit)
    return replace(radiograph, pixels=pixels)


# Projection radiography; XA, RF and others also show the chest but are not radiographs.
_RADIOGRAPH_MODALITIES = {"", "CR", "DX", "RG"}
_CHEST = re.compile(r"CHEST|THORAX|TORAX|LUNG|\bRIBS?\b|^$")


def check_radiograph(radiograph: Radiograph, unstated: Collection[str] = ()) -> None:
    """Refuse an image whose header states another modality than projection radiography.

    Args:
        radiograph: the image; without a header, or without its modality, it is accepted.
        unstated: further modalities that are accepted.

    Raises:
        UnreadableImage: the reason quotes nothing from the header.
    """
    if radiograph.modality not in {*_RADIOGRAPH_MODALITIES, *unstated}:
        raise UnreadableImage("not a radiograph according to its header (modality)")


def check_chest(radiograph: Radiograph) -> None:
    """Refuse an image whose header states that it is not a radiograph of the chest.

    Images without these header fields are accepted, as are PNG and JPEG, which have no header.

    Raises:
        UnreadableImage: the reason quotes nothing from the header.
    """
    check_radiograph(radiograph)
    if not _CHEST.search(radiograph.body_part):
        raise UnreadableImage("not of the chest according to its header (body part)")


def check_burned_in(radiograph: Radiograph, accepted: bool) -> None:
    """Refuse an image whose header declares burned-in text, unless accepted.

    Raises:
        UnreadableImage: the text may be a patient's name.
    """
    if radiograph.burned_in and not accepted:
        raise UnreadableImage("burned-in text according to its header; --burned_in accept includes it")


def _read_png_or_jpeg(data: bytes, format_: str) -> Radiograph:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warnings; sizes are checked before decoding
            with Image.open(BytesIO(data), formats=[format_]) as image:
                check_size(image.height, image.width)
                frames = getattr(image, "n_frames", 1)
                if frames != 1:
                    raise UnreadableImage(f"{frames} frames, one expected")
                image.load()
                pixels, bits = _grey(image)
                geometry = Geometry(_orientation(image))
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files.
        # Only the error type is reported: messages contain the path, which may contain a patient's name.
        raise UnreadableImage(f"not readable as {format_} ({type(error).__name__})") from error
    check_not_constant(pixels)
    return Radiograph(geometry.apply(pixels), bits=bits, stored=pixels.shape, geometry=geometry)


def _orientation(image: Image.Image) -> int:
    """Return the orientation of a loaded image's EXIF, 1 to 8; 1 (upright) if it is absent or invalid."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises any exception on damaged EXIF, which leaves the image readable
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _grey(image: Image.Image) -> tuple[ndarray, int]:
    """Return (H, W) float32 in [0, 1] and the bit depth of a grey image in any pixel format."""
    if image.mode.startswith("I"):  # 16-bit PNG: "I;16", or "I" in older Pillow
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise UnreadableImage("grey values beyond 16 bits")
        return values.astype(np.float32) / np.float32(65_535), 16
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise UnreadableImage("partly transparent image")
    if image.mode in ("P", "PA", "RGBA", "LA"):
        image = image.convert("RGB")
    if image.mode == "RGB":
        channels = np.asarray(image)
        spread = channels.max(axis=2) - channels.min(axis=2)
        if np.count_nonzero(spread > _GREY_TOLERANCE) > _MAX_COLOURED_FRACTION * spread.size:
            raise UnreadableImage("colour image")
        image = image.convert("L")
    if image.mode != "L":
        raise UnreadableImage(f"pixel format {image.mode} is not 8- or 16-bit grey")
    return np.asarray(image).astype(np.float32) / np.float32(255), 8
