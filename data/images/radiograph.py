"""`read_radiograph`: any file that holds a radiograph -> grey levels in [0, 1]."""

import re
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from medunifier.data.images.dicom import MAX_FILE_BYTES, Radiograph, Windowing, decode_dicom, is_dicom
from medunifier.data.images.pixels import Fit, UnreadableImage, check_not_constant, check_size, fit_square
from medunifier.data.remote_paths import as_path, read_at_most

_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}

# A grey picture saved as RGB differs between its channels by JPEG's rounding, and where an arrow or a
# caption is in colour. A colour image (a screenshot, a stained print) differs nearly everywhere.
_GREY_TOLERANCE = 16
_COLOURED_SHARE = 0.01


def read_radiograph(path: str | Path, size: int | None = None) -> ndarray:
    """Read a DICOM (plain or gzipped), PNG or JPEG radiograph; the format is detected by content, not by name.

    Args:
        path: the file.
        size: side of the square to resize to: aspect kept, padded with black, anti-aliased. None keeps the
            stored size.

    Returns:
        (H, W) float32 in [0, 1], bones bright, or (size, size). Scaled by the window or else by the bits of
        the file (see `data.dicom`); PNG and JPEG by 255 or 65,535. RGB files are converted where their
        channels agree within 16 of 255 on 99 % of the pixels.

    Raises:
        UnreadableImage: with a short reason; nothing is repaired by guess.
    """
    return read_image(path, size).pixels


def read_image(
    path: str | Path, size: int | None = None, fit: Fit = "pad", window: Windowing = "header"
) -> Radiograph:
    """Read a radiograph with the view, modality and body part of its DICOM header.

    Args:
        path, size: see :func:`read_radiograph`.
        fit: pad or crop to a square, see :func:`medunifier.data.images.pixels.fit_square`.
        window: grey levels of a DICOM image to display; PNG and JPEG have no window.
    """
    try:
        data = read_at_most(as_path(path), MAX_FILE_BYTES)
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror or type(error).__name__}") from error
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    image = decode_dicom(data, window) if kind is None or is_dicom(data[:132]) else _read_picture(data, kind)
    if size is None:
        return image
    return replace(image, pixels=fit_square(image.pixels, size, fit), stored=image.pixels.shape)


# Projection radiography; XA, RF and similar modalities are other images of the chest.
_RADIOGRAPHS = {"", "CR", "DX", "RG"}
_CHEST = re.compile(r"CHEST|THORAX|TORAX|LUNG|\bRIBS?\b|^$")


def check_chest(image: Radiograph) -> None:
    """Refuse an image whose header states that it is not a radiograph of the chest.

    Images without this information are accepted, and so are PNG and JPEG.

    Raises:
        UnreadableImage: the reason quotes no header value.
    """
    if image.modality not in _RADIOGRAPHS:
        raise UnreadableImage("not a radiograph, as its header says (modality)")
    if not _CHEST.search(image.body_part):
        raise UnreadableImage("not of the chest, as its header says (body part)")


def check_burned_in(image: Radiograph, accepted: bool) -> None:
    """Refuse an image whose header states burned-in text, unless that is accepted.

    Raises:
        UnreadableImage: the text may be a patient's name.
    """
    if image.burned_in and not accepted:
        raise UnreadableImage("words burned into the picture, as its header says; --burned_in accept takes it")


def _read_picture(data: bytes, kind: str) -> Radiograph:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes; ours are checked before decoding
            with Image.open(BytesIO(data), formats=[kind]) as image:
                check_size(image.height, image.width)
                frames = getattr(image, "n_frames", 1)
                if frames != 1:
                    raise UnreadableImage(f"{frames} frames, one expected")
                image.load()
                pixels, bits = _grey(image)
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files.
        # Their texts name the file, whose path may hold a patient's name: the kind of the error must do.
        raise UnreadableImage(f"not readable as {kind} ({type(error).__name__})") from error
    check_not_constant(pixels)
    return Radiograph(pixels, bits=bits)


def _grey(image: Image.Image) -> tuple[ndarray, int]:
    """(H, W) float32 in [0, 1] and the bits of a grey picture, however its file spells grey."""
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
        if np.count_nonzero(spread > _GREY_TOLERANCE) > _COLOURED_SHARE * spread.size:
            raise UnreadableImage("colour image")
        image = image.convert("L")
    if image.mode != "L":
        raise UnreadableImage(f"pixel format {image.mode} is not a grey image of 8 or 16 bits")
    return np.asarray(image).astype(np.float32) / np.float32(255), 8
