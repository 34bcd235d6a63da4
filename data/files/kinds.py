"""The kind of a file by its first bytes, whatever its name."""

import struct
import zlib
from typing import BinaryIO, Literal

Kind = Literal["dicom", "png", "jpeg", "directory"]
"""``directory`` is a DICOMDIR, the index of a medium (PS3.10 8)."""

HEAD_BYTES = 2**12
"""First bytes that :func:`kind_of` needs; the file meta information of DICOM lies in them."""

GZIP = b"\x1f\x8b"
_STEP = 2**16
_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
_FIRST_GROUPS = (0x0002, 0x0004, 0x0008)
_LAST_FIRST_ELEMENT = 0x0070
_MAX_FIRST_LENGTH = 2**10
_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT OB OW PN SH SL SQ SS ST TM UI UL UN US UT".split())


def kind_of(head: bytes) -> Kind | None:
    """Return the kind of an unpacked file from its first :data:`HEAD_BYTES`; None if it is no image or DICOM file."""
    if head[128:132] == b"DICM" or _starts_a_data_set(head):
        return "directory" if _DIRECTORY_CLASS in head[:HEAD_BYTES] else "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "jpeg" if head.startswith(b"\xff\xd8\xff") else None


def _starts_a_data_set(head: bytes) -> bool:
    """Recognize DICOM without preamble (and ACR-NEMA) by its first element, whose group is one of the lowest."""
    if len(head) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", head[:8])
        if group in _FIRST_GROUPS and element <= _LAST_FIRST_ELEMENT:
            return head[4:6] in _VRS or length <= _MAX_FIRST_LENGTH
    return False


def inflate_start(file: BinaryIO, most: int, raw: bool = False) -> bytes:
    """Return the first ``most`` bytes of a compressed stream, fewer where it is cut or damaged.

    Args:
        file: positioned at the beginning of the stream.
        most: number of bytes; no more are inflated, so a decompression bomb does no harm.
        raw: deflate without a wrapper, as in DICOM's deflated transfer syntax; else gzip.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS if raw else 16 + zlib.MAX_WBITS)
    found = bytearray()
    try:
        while len(found) < most and not inflater.eof and (packed := file.read(_STEP)):
            while packed and len(found) < most:
                found += inflater.decompress(packed, min(_STEP, most - len(found)))
                packed = inflater.unconsumed_tail
    except (zlib.error, EOFError):
        pass  # what came before the damage is enough to recognize the file
    return bytes(found)
