"""Parse the header of a compressed image stream without decoding it.

Codecs allocate memory according to this header, not to DICOM's, so it is checked before they are called.
"""

import struct
from dataclasses import dataclass

_JPEG, _J2K = b"\xff\xd8", b"\xff\x4f\xff\x51"
_JP2_BOX = b"jP  "

# Start-of-frame markers of the codings that DICOM has transfer syntaxes for: baseline, extended, lossless
# (ITU-T T.81 table B.1) and JPEG-LS (T.87). Progressive and hierarchical streams are excluded: each additional scan,
# a few bytes long, makes a decoder process the whole image again.
_FRAME_MARKERS = {0xC0, 0xC1, 0xC3, 0xF7}
_OTHER_FRAMES = (set(range(0xC0, 0xE0)) - {0xC4, 0xC8, 0xCC} - set(range(0xD0, 0xDE))) - _FRAME_MARKERS
_BARE_MARKERS = set(range(0xD0, 0xDA)) | {0x01}


@dataclass(frozen=True)
class Frame:
    """Size of the image in a compressed stream."""

    rows: int
    columns: int
    components: int
    """Number of colour components; 1 for grey."""


def parse_frame_header(stream: bytes) -> Frame | None:
    """Return the frame of a JPEG, JPEG-LS or JPEG 2000 stream; None for other codings and damaged headers."""
    if stream[4:8] == _JP2_BOX:  # a JP2 file instead of a bare codestream
        stream = stream[max(stream.find(_J2K), 0) :]
    if stream[:4] == _J2K:
        return _jpeg2000_frame(stream)
    if stream[:2] == _JPEG:
        return _jpeg_frame(stream)
    return None


def covers_all_coefficients(stream: bytes) -> bool:
    """Return False for a sequential JPEG stream whose first scan header does not cover all 64 coefficients.

    T.81 (table B.3) requires these three bytes to be 0, 63 and 0. Some encoders of the 1990s, including that of
    NEMA's 12-bit sample images, wrote 0 as the last coefficient, and decoders disagree on such a stream.
    """
    at = _segment(stream, {0xDA})
    if stream[:2] != _JPEG or not at or _segment(stream[:at], {0xC0, 0xC1}) is None:
        return True
    end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return stream[end - 3 : end] == b"\x00\x3f\x00"


def _jpeg2000_frame(stream: bytes) -> Frame | None:
    """Parse the SIZ segment, which comes first (ITU-T T.800 A.5.1)."""
    if len(stream) < 42:
        return None
    right, bottom, left, top = struct.unpack(">4I", stream[8:24])
    return Frame(bottom - top, right - left, int.from_bytes(stream[40:42], "big"))


def _jpeg_frame(stream: bytes) -> Frame | None:
    at = _segment(stream, _FRAME_MARKERS)
    return None if at is None else Frame(*struct.unpack(">HHB", stream[at + 5 : at + 10]))


def _segment(stream: bytes, wanted: set[int]) -> int | None:
    """Return the offset of the first segment with one of these markers; None if absent or after another frame."""
    at = 2
    while at + 10 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _BARE_MARKERS:
            at += 2
        elif marker in wanted:
            return at
        elif marker in _OTHER_FRAMES:
            return None
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
