"""A DICOM file as bytes, from names and values: enough of PS3.5 and PS3.10 for a phantom, and fast.

pydicom checks every value on its way into a data set and once more on its way out, which costs more than
drawing the picture. What is written here is fixed by our own code, so a test holds it against pydicom's
writer in place of a check at run time.
"""

import struct
import zlib
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy import ndarray
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.pixels import get_encoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

Value = str | int | bytes | tuple[str, ...]

# Made once from a random UUID, as PS3.5 B.2 allows.
IMPLEMENTATION_UID = "2.25.49641623370334894472737833935898052062"
_IMPLEMENTATION_NAME = "MEDUNIFIER"
_LONG_FORM = {"OB", "OW"}


def dicom_file(elements: Mapping[str, Value], pixels: ndarray, syntax: str) -> bytes:
    """A complete file: preamble, file meta information, data set.

    Args:
        elements: {keyword: value} without the pixels; several values are a tuple of text. SOPClassUID and
            SOPInstanceUID are needed, since the file meta information repeats them.
        pixels: (H, W) unsigned 16-bit values as stored.
        syntax: UID of the transfer syntax: implicit, explicit or deflated explicit VR little endian, or
            RLE lossless.

    Returns:
        The bytes of the file.
    """
    explicit = syntax != ImplicitVRLittleEndian
    values = {_tag(name): (_vr(name), value) for name, value in elements.items()}
    body = b"".join(_element(tag, *values[tag], explicit) for tag in sorted(values))
    if syntax == RLELossless:
        body += _run_lengths(pixels)
    else:
        body += _element(_tag("PixelData"), "OW", pixels.astype("<u2", copy=False).tobytes(), explicit)
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = _even(deflater.compress(body) + deflater.flush(), b"\0")
    return b"\0" * 128 + b"DICM" + _file_meta(elements, syntax) + body


def _file_meta(elements: Mapping[str, Value], syntax: str) -> bytes:
    group = b"".join(
        _element(_tag(name), _vr(name), value, explicit=True)
        for name, value in (
            ("FileMetaInformationVersion", b"\0\1"),
            ("MediaStorageSOPClassUID", elements["SOPClassUID"]),
            ("MediaStorageSOPInstanceUID", elements["SOPInstanceUID"]),
            ("TransferSyntaxUID", syntax),
            ("ImplementationClassUID", IMPLEMENTATION_UID),
            ("ImplementationVersionName", _IMPLEMENTATION_NAME),
        )
    )
    return struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(group)) + group


@cache
def _tag(name: str) -> int:
    tag = tag_for_keyword(name)
    assert tag is not None, name
    return tag


@cache
def _vr(name: str) -> str:
    return dictionary_VR(_tag(name))


def _element(tag: int, vr: str, value: Value, explicit: bool) -> bytes:
    content = _content(vr, value)
    group, number = tag >> 16, tag & 0xFFFF
    if not explicit:
        return struct.pack("<HHI", group, number, len(content)) + content
    if vr in _LONG_FORM:
        return struct.pack("<HH2sHI", group, number, vr.encode(), 0, len(content)) + content
    return struct.pack("<HH2sH", group, number, vr.encode(), len(content)) + content


def _content(vr: str, value: Value) -> bytes:
    """A value in its representation, of even length."""
    if isinstance(value, bytes):
        return _even(value, b"\0")
    if isinstance(value, int):
        return struct.pack("<h" if vr == "SS" else "<H", value)
    text = value if isinstance(value, str) else "\\".join(value)
    return _even(text.encode("ascii"), b"\0" if vr == "UI" else b" ")


def _even(content: bytes, pad: bytes) -> bytes:
    return content + pad if len(content) % 2 else content


def _run_lengths(pixels: ndarray) -> bytes:
    """Encapsulated pixel data of one frame: an empty offset table, one fragment, the end."""
    rows, columns = pixels.shape
    frame = get_encoder(RLELossless).encode(
        np.ascontiguousarray(pixels, dtype="<u2"), encoding_plugin="pydicom", rows=rows, columns=columns,
        samples_per_pixel=1, bits_allocated=16, bits_stored=16, pixel_representation=0, number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    frame = _even(frame, b"\0")
    start = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    return start + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
