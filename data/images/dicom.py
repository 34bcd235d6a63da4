"""Decode DICOM radiographs to display values in [0, 1], and read the few header fields that are used.

Pipeline (DICOM PS3.3 C.11): stored value -> modality LUT or rescale -> VOI LUT or window -> [0, 1] -> inversion for
MONOCHROME1. Without a window the range is that of the stored bits, never the image's minimum and maximum, so images
of one device remain comparable. Nothing is repaired by guessing: a file that contradicts itself is refused, and tags
are trusted (a wrong MONOCHROME1 tag gives a negative).
"""

import gzip
import logging
import re
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy import ndarray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medunifier.data.images.compressed_header import covers_all_coefficients, parse_frame_header
from medunifier.data.images.pixels import UnreadableImage, check_not_constant, check_size
from medunifier.data.remote_paths import as_path, read_at_most

MAX_FILE_BYTES = 2**29
"""Maximum size of a file after decompression, in bytes."""
_META_BYTES = 2**16
"""Minimum number of bytes searched for a transfer syntax; the stated length of the meta information may be wrong."""

# pydicom also logs what it raises, with tracebacks; a refused file should only be one line in a table.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

# Lossy coding causes ringing at edges, also beyond the range of the original values.
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000, HTJ2K)

_GZIP = b"\x1f\x8b"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_NOT_GREY = (
    "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "HSV", "ARGB",
    "CMYK", "XYB",
)  # fmt: skip
Windowing = Literal["header", "full"]
"""header: the VOI LUT or first window of the file, else full. full: the full range of the stored bits, ignoring the
file's LUT and windows."""

_CODEC_ERROR = re.compile(r"error code '(-?\d{1,5})'")


@dataclass(frozen=True)
class Radiograph:
    """A decoded image and the header fields that ingest uses. No identifier is read."""

    pixels: ndarray
    """(H, W) float32 in [0, 1], bones bright."""
    view: str = ""
    """ViewPosition in upper case ("PA", "AP", "LATERAL", "LL", ...), "" if the header has none."""
    modality: str = ""
    body_part: str = ""
    bits: int = 8
    """Bit depth of the source."""
    burned_in: bool = False
    """The header declares text in the pixels, possibly a name (BurnedInAnnotation is YES)."""
    stored: tuple[int, int] = (0, 0)
    """Rows and columns of the file, if ``pixels`` were fitted to a square."""


def read_dicom(path: str | Path) -> Radiograph:
    """Read one DICOM radiograph, plain or gzipped, with or without preamble and file meta information.

    Raises:
        UnreadableImage: not DICOM, no pixels, truncated, colour, several frames, an implausible size, values
            beyond the bits stored, a codec failure, a constant image.
        OSError: if the file cannot be opened, is not a regular file, or is larger than 512 MiB.
    """
    return decode_dicom(read_at_most(as_path(path), MAX_FILE_BYTES))


def decode_dicom(data: bytes, window: Windowing = "header") -> Radiograph:
    """Decode the bytes of a file as `read_dicom` does, with a choice of windowing."""
    with warnings.catch_warnings():
        # pydicom warns about every unusual header value; only errors matter here.
        warnings.simplefilter("ignore")
        try:
            dataset = _parse(_unpacked(data))
            return _radiograph(dataset, window)
        except UnreadableImage:
            raise
        except RecursionError:
            raise UnreadableImage("not readable as DICOM: sequences nested too deeply") from None
        except Exception as error:
            # Damaged files raise any exception of the innermost parser or codec.
            raise UnreadableImage(f"not readable as DICOM ({_brief(error)})") from error


def is_dicom(head: bytes) -> bool:
    """Return whether the first 132 bytes of a file have the DICOM magic. Files without preamble lack it."""
    return head[128:132] == b"DICM"


def _brief(error: Exception) -> str:
    """Return an error's type without its text, which quotes the header and may contain a name."""
    number = _CODEC_ERROR.search(str(error))
    return type(error).__name__ + (f", codec error {number[1]}" if number else "")


def _unpacked(data: bytes) -> bytes:
    """Return the file's bytes, decompressed if gzipped, up to a size limit."""
    if data[:2] == _GZIP:
        with gzip.open(BytesIO(data)) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableImage("too large after decompression")
    if not data:
        raise UnreadableImage("empty file")
    return data


def _parse(data: bytes) -> Dataset:
    if DeflatedExplicitVRLittleEndian.encode() in data[: max(_meta_end(data), _META_BYTES)]:
        _check_inflated_size(data)
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True)
    except Exception as error:
        raise UnreadableImage(f"not readable as DICOM ({_brief(error)})") from error
    if not is_dicom(data) and not any(tag in dataset for tag in ("SOPClassUID", "Modality", "Rows", "PixelData")):
        raise UnreadableImage("not a DICOM file")
    return dataset


def _meta_end(data: bytes) -> int:
    """Return the offset of the data set from the group length (0002,0000), the first element; 0 if it is absent."""
    if not is_dicom(data) or data[132:136] != b"\x02\x00\x00\x00" or len(data) < 144:
        return 0
    return 144 + int.from_bytes(data[140:144], "little")


def _check_inflated_size(data: bytes) -> None:
    """Decompress a deflated data set in small steps without keeping the bytes, to refuse decompression bombs."""
    start = _meta_end(data)
    if not start:
        raise UnreadableImage("not readable as DICOM: deflated without the length of its file meta information")
    inflater, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
    while rest and not inflater.eof:
        total += len(inflater.decompress(rest, 2**20))
        rest = inflater.unconsumed_tail
        if total > MAX_FILE_BYTES:
            raise UnreadableImage("too large after decompression")


def _radiograph(dataset: Dataset, window: Windowing) -> Radiograph:
    _check_header(dataset)
    stored = _stored_values(dataset)
    check_not_constant(stored)
    pixels = _display_values(dataset, stored, window == "header")
    check_not_constant(pixels)
    return Radiograph(
        pixels=pixels,
        view=_upper(dataset, "ViewPosition"),
        modality=_upper(dataset, "Modality"),
        body_part=_upper(dataset, "BodyPartExamined"),
        bits=int(dataset.BitsStored),
        burned_in=_upper(dataset, "BurnedInAnnotation") == "YES",
    )


def _upper(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return str(value).strip().upper() if isinstance(value, str) else ""


def _check_header(dataset: Dataset) -> None:
    """Run all checks that need no decoded pixels."""
    if "PixelData" not in dataset:
        raise UnreadableImage("no pixel data")
    if not dataset.PixelData:
        raise UnreadableImage("empty pixel data")
    for name in (
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "PhotometricInterpretation",
        "PixelRepresentation",
    ):
        if dataset.get(name) in (None, ""):
            raise UnreadableImage(f"header lacks {name}")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise UnreadableImage("colour image")
    if dataset.PhotometricInterpretation not in _GREY:
        is_standard = dataset.PhotometricInterpretation in _NOT_GREY
        description = (
            f"photometric interpretation {dataset.PhotometricInterpretation}"
            if is_standard
            else "photometric interpretation"
        )
        raise UnreadableImage(f"{description} is not grey")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise UnreadableImage(f"{int(dataset.NumberOfFrames)} frames, one expected")
    check_size(int(dataset.Rows), int(dataset.Columns))
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16, 32) or not 2 <= bits <= min(allocated, 16):
        raise UnreadableImage(f"{bits} bits stored in {allocated} allocated")


def _stored_values(dataset: Dataset) -> ndarray:
    """Decode the pixel data: (H, W) integers as stored."""
    if not getattr(dataset, "file_meta", None) or "TransferSyntaxUID" not in dataset.file_meta:
        # No file meta: DICOM's default, unless the parser found explicit VRs.
        explicit = not dataset.original_encoding[0]
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    options: dict[str, Any] = {}
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream(dataset, rows, columns)
        options["decoding_plugin"] = _decoding_plugin(dataset.file_meta.TransferSyntaxUID)
    # pydicom would mask unsigned values beyond the bits stored, silently turning white to black.
    # Higher bits are valid if an old overlay uses them, and (as sign) in signed values.
    has_overlay = any(element.tag.group & 0xFF00 == 0x6000 for element in dataset)
    if int(dataset.PixelRepresentation) == 0 and not has_overlay:
        options["correct_unused_bits"] = False
    dataset.pixel_array_options(**options)
    try:
        stored = dataset.pixel_array
    except Exception as error:
        truncated = "less than expected" in str(error)
        raise UnreadableImage(
            "truncated pixel data" if truncated else f"undecodable pixels ({_brief(error)})"
        ) from error
    if stored.shape != (rows, columns):
        raise UnreadableImage(f"decoded to {stored.shape}, but the header states {(rows, columns)}")
    low, high = _stored_range(dataset)
    least, greatest = int(stored.min()), int(stored.max())
    if low <= least and greatest <= high:
        return stored
    ringing = (high - low) // 16 if dataset.file_meta.TransferSyntaxUID in _LOSSY else 0
    if least < low - ringing or greatest > high + ringing:
        raise UnreadableImage(f"pixel values beyond the {int(dataset.BitsStored)} bits stored")
    return np.clip(stored, low, high)


@cache
def _decoding_plugin(syntax: UID) -> str:
    """Return the decoding plugin, the same on all machines, since JPEG decoders differ by a grey level.

    GDCM, which pydicom tries first, is excluded: it crashes the process on some damaged files.

    JPEG-LS decoding is exact, near-lossless or not. So the fastest installed decoder is used: CharLS needs a fifth of
    libjpeg's time.
    """
    if syntax == RLELossless:
        return "pydicom"
    jpeg_ls = syntax in (JPEGLSLossless, JPEGLSNearLossless)
    return "pyjpegls" if jpeg_ls and "pyjpegls" in get_decoder(syntax).available_plugins else "pylibjpeg"


def _check_codestream(dataset: Dataset, rows: int, columns: int) -> None:
    """Refuse a stream whose header disagrees with DICOM's, since codecs allocate memory according to the former."""
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return  # has no image size; pydicom decodes it to the size in the header
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1), b"")
    frame = parse_frame_header(stream)
    if frame is None:
        raise UnreadableImage("compressed stream without a readable header")
    if (frame.rows, frame.columns) != (rows, columns):
        raise UnreadableImage(
            f"compressed stream is {frame.rows} x {frame.columns}, but the header states {rows} x {columns}"
        )
    if frame.components != 1:
        raise UnreadableImage("colour image")
    if not covers_all_coefficients(stream):
        raise UnreadableImage(
            "JPEG scan header violates the standard (ITU-T T.81, table B.3): convert the file first"
        )


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    bits = int(dataset.BitsStored)
    if int(dataset.PixelRepresentation) == 1:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _display_values(dataset: Dataset, stored: ndarray, windowed: bool) -> ndarray:
    """Return (H, W) float32 in [0, 1], bones bright; the header's LUT and window are applied only if ``windowed``."""
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1" or _upper(dataset, "PresentationLUTShape") == "INVERSE"
    )
    values, low, high = _modality(dataset, stored)
    if windowed and _has_table(dataset, "VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        display = apply_voi(values, dataset).astype(np.float32) / (2.0 ** int(table.LUTDescriptor[2]) - 1)
        display = np.clip(display, 0.0, 1.0)
        return 1.0 - display if inverted else display
    values = values.astype(np.float32)
    window = _window(dataset) if windowed else None
    if inverted:
        # Values are mirrored before windowing, not after. The standard's linear window is asymmetric by half a grey
        # level; this way an image and its counterpart with mirrored values and window are equal.
        values = np.float32(low + high) - values
        window = window and (low + high - window[0], window[1])
    if window is None:
        return np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return _windowed(values, *window, _upper(dataset, "VOILUTFunction"))


def _has_table(dataset: Dataset, name: str) -> bool:
    sequence = dataset.get(name)
    return bool(sequence) and "LUTData" in sequence[0]


def _number(value: Any) -> float | None:
    """Return the (first) number of an attribute; None if it is empty or not a finite number."""
    if value is not None and not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _modality(dataset: Dataset, stored: ndarray) -> tuple[ndarray, float, float]:
    """Return the values after the modality LUT or rescale, and the range that the stored bits allow."""
    low, high = _stored_range(dataset)
    if _has_table(dataset, "ModalityLUTSequence"):
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        return apply_modality_lut(stored, dataset), 0.0, 2.0**bits - 1
    slope, intercept = _number(dataset.get("RescaleSlope")), _number(dataset.get("RescaleIntercept"))
    if slope is None or intercept is None or (slope == 1 and intercept == 0):
        return stored, low, high
    if slope == 0:
        raise UnreadableImage("rescale slope is 0")
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept), ends[0], ends[1]


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Return (centre, width) of the first window; None if there is no valid one."""
    centre, width = _number(dataset.get("WindowCenter")), _number(dataset.get("WindowWidth"))
    min_width = 1.0 if _upper(dataset, "VOILUTFunction") in ("", "LINEAR") else 0.0
    return (centre, width) if centre is not None and width is not None and width > min_width else None


def _windowed(values: ndarray, centre: float, width: float, function: str) -> ndarray:
    """Apply one of the three window functions of PS3.3 C.11.2.1.2 and .3, to [0, 1]."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(np.float32(-4.0) * (values - np.float32(centre)) / np.float32(width)))).astype(
                np.float32
            )
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1.0
    display = (values - np.float32(centre)) / np.float32(width) + np.float32(0.5)
    return np.clip(display, 0.0, 1.0, out=display)
