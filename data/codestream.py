"""The picture size that a compressed stream announces in its own header, read without decoding it."""

import struct

_JPEG, _J2K = b"\xff\xd8", b"\xff\x4f\xff\x51"

# JPEG's start-of-frame markers (ITU-T T.81 table B.1) and JPEG-LS' (T.87); C4, C8 and CC are other things.
_FRAME_MARKERS = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_BARE_MARKERS = set(range(0xD0, 0xDA)) | {0x01}


def frame_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 codestream; None for other codings (RLE) or damage."""
    if stream[:4] == _J2K:
        return _jpeg2000_size(stream)
    if stream[:2] == _JPEG:
        return _jpeg_size(stream)
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int] | None:
    """From the SIZ segment, which comes first (ITU-T T.800 A.5.1)."""
    if len(stream) < 24:
        return None
    right, bottom, left, top = struct.unpack(">4I", stream[8:24])
    return bottom - top, right - left


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _BARE_MARKERS:
            at += 2
        elif marker in _FRAME_MARKERS:
            rows, columns = struct.unpack(">HH", stream[at + 5 : at + 9])
            return rows, columns
        else:
            at += 2 + int(struct.unpack(">H", stream[at + 2 : at + 4])[0])
    return None
