"""Decode DICOM radiographs to display values in [0, 1], and read the few header fields that are used.

Pipeline: stored value -> modality LUT or rescale -> VOI LUT or window -> [0, 1] -> inversion for MONOCHROME1
(`medunifier.data.images.lut`) -> square pixels. Nothing is repaired by guessing: a file that contradicts itself is
refused, and tags are trusted (a wrong MONOCHROME1 tag gives a negative).
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
from typing import IO, Any, Literal

import numpy as np
import pydicom
from numpy import ndarray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medunifier.data.files.header_values import attribute, code_string
from medunifier.data.files.kinds import GZIP
from medunifier.data.images.compressed_header import covers_all_coefficients, parse_frame_header
from medunifier.data.images.lut import display_values
from medunifier.data.images.pixels import UnreadableImage, check_not_constant, check_size
from medunifier.data.images.resize import UPRIGHT, Geometry
from medunifier.data.images.views import view_of_header
from medunifier.data.remote_paths import as_path, read_at_most

MAX_FILE_BYTES = 2**29
"""Maximum size of a file after decompression, in bytes."""

# pydicom also logs what it raises, with tracebacks; a refused file should only be one line in a table.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

# Lossy coding causes ringing at edges, also beyond the range of the original values.
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)

_MAX_ASPECT = 8.0
"""Greatest plausible ratio of the sides of a pixel. Line scanners have about 2."""

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
    """(H, W) float32 in [0, 1], bones bright, upright, with square pixels."""
    view: str = ""
    """View position in upper case ("PA", "AP", "LATERAL", "LL", ...), see :func:`view_of_header`; "" if unknown."""
    modality: str = ""
    body_part: str = ""
    bits: int = 8
    """Bit depth of the source."""
    burned_in: bool = False
    """The header declares text in the pixels, possibly a name (BurnedInAnnotation is YES)."""
    stored: tuple[int, int] = (0, 0)
    """Rows and columns of the file, before ``geometry`` and fitting to a square."""
    geometry: Geometry = UPRIGHT
    """What was applied to the stored pixels. Masks of the file need the same."""


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
    if data.startswith(GZIP):
        with gzip.open(BytesIO(data)) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableImage("too large after decompression")
    if not data:
        raise UnreadableImage("empty file")
    return data


def _parse(data: bytes) -> Dataset:
    try:
        dataset = pydicom.dcmread(DicomFile(BytesIO(data)), force=True)
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"not readable as DICOM ({_brief(error)})") from error
    if not is_dicom(data) and not any(tag in dataset for tag in ("SOPClassUID", "Modality", "Rows", "PixelData")):
        raise UnreadableImage("not a DICOM file, nor PNG or JPEG")
    return dataset


class DicomFile:
    """A file for ``pydicom.dcmread`` that refuses decompression bombs.

    pydicom inflates a deflated data set at once and without a bound. It reads to the end of the file only for that,
    so the size is checked there: at the very bytes that it will inflate, whatever lengths the header states.

    Args:
        file: binary and seekable.

    Raises:
        UnreadableImage: while it is read, if the data set is larger than 512 MiB, packed or inflated.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Return ``size`` bytes; without a size, all that follow, which must be a deflated data set."""
        if size >= 0:
            return self._file.read(size)
        rest = self._file.read(MAX_FILE_BYTES + 1)
        _check_inflated_size(rest)
        return rest


def _check_inflated_size(rest: bytes) -> None:
    """Decompress a deflated data set in small steps without keeping the bytes."""
    total = len(rest) if len(rest) > MAX_FILE_BYTES else 0
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while rest and not inflater.eof and total <= MAX_FILE_BYTES:
        total += len(inflater.decompress(rest, 2**20))
        rest = inflater.unconsumed_tail
    if total > MAX_FILE_BYTES:
        raise UnreadableImage("too large after decompression")


def _radiograph(dataset: Dataset, window: Windowing) -> Radiograph:
    _check_header(dataset)
    stored = _stored_values(dataset)
    check_not_constant(stored)
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1" or _upper(dataset, "PresentationLUTShape") == "INVERSE"
    )
    stored_range = _stored_range(dataset)
    pixels = display_values(dataset, stored, stored_range, windowed=window == "header", inverted=inverted)
    check_not_constant(pixels)
    geometry = Geometry(aspect=_pixel_aspect(dataset))
    return Radiograph(
        pixels=geometry.apply(pixels),
        stored=pixels.shape,
        geometry=geometry,
        view=view_of_header(dataset),
        modality=_upper(dataset, "Modality"),
        body_part=_upper(dataset, "BodyPartExamined"),
        bits=int(dataset.BitsStored),
        burned_in=_upper(dataset, "BurnedInAnnotation") == "YES",
    )


def _upper(dataset: Dataset, name: str) -> str:
    return code_string(attribute(dataset, name))


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
    is_lossy = dataset.file_meta.TransferSyntaxUID in _LOSSY
    # pydicom would mask the bits above those stored. In lossy images these are an overshoot, and white would become
    # black; in others it is decided below. A signed lossy image is decoded as unsigned and needs pydicom's shift.
    if int(dataset.PixelRepresentation) == 0 or not is_lossy:
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
    if not is_lossy:
        return _without_unused_bits(dataset, stored)
    ringing = (high - low) // 16
    if least < low - ringing or greatest > high + ringing:
        raise UnreadableImage(_beyond(dataset))
    return np.clip(stored, low, high)


def _beyond(dataset: Dataset) -> str:
    return f"pixel values beyond the {int(dataset.BitsStored)} bits stored"


def _without_unused_bits(dataset: Dataset, stored: ndarray) -> ndarray:
    """Return (H, W) int32 without the unused bits, whose content is undefined (PS3.5 8.1.1), for example overlays.

    They lie above HighBit, and in old files also below. Signed values get the sign of their highest stored bit.

    Raises:
        UnreadableImage: if the upper bits continue the values, since masked values would wrap around: BitsStored is
            too small, or PixelRepresentation wrong. The image is then smoother with them than without.
    """
    bits, high_bit = int(dataset.BitsStored), dataset.get("HighBit")
    shift = max(0, int(high_bit) + 1 - bits) if isinstance(high_bit, int) else 0
    whole: ndarray = stored.astype(np.int32 if stored.itemsize < 4 else np.int64)
    whole = whole >> shift
    values = (whole & (2**bits - 1)).astype(np.int32)
    if int(dataset.PixelRepresentation) == 1:
        sign = 2 ** (bits - 1)
        values = (values ^ sign) - sign
    if _variation(values) > _variation(whole):
        raise UnreadableImage(_beyond(dataset))
    return values


def _variation(values: ndarray) -> int:
    """Return the sum of the absolute differences between adjacent pixels."""
    strips = (values[top : top + 257].astype(np.int64) for top in range(0, len(values), 256))  # bounds the memory
    return sum(int(np.abs(np.diff(s, axis=0)).sum() + np.abs(np.diff(s[:256], axis=1)).sum()) for s in strips)


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


def _pixel_aspect(dataset: Dataset) -> float:
    """Return height / width of a pixel from its spacing, or else from PixelAspectRatio; 1 if neither is usable.

    Raises:
        UnreadableImage: above 8 or below 1/8.
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        try:
            vertical, horizontal = map(float, list(dataset[name].value))
        except Exception:  # noqa: S112 - absent, or not two numbers; pydicom raises any exception on the latter
            continue
        if not (0 < vertical < np.inf and 0 < horizontal < np.inf):
            continue
        if not 1 / _MAX_ASPECT <= vertical / horizontal <= _MAX_ASPECT:
            raise UnreadableImage("implausible pixel aspect ratio")
        return vertical / horizontal
    return 1.0
