"""Headers of compressed streams, and headers that are rejected."""

import struct

import pydicom
import pytest
from pydicom.encaps import generate_frames

from medunifier.data.images.compressed_header import Frame, covers_all_coefficients, parse_frame_header
from tests.data.dicom_samples import RAMP, jpeg_lossless, sample


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("jpeg", (32, 40)), ("jpeg-lossless", (32, 40)), ("jpeg-2000", (32, 40)), ("jpeg-2000-lossless", (32, 40)),
        ("jpeg-ls", (64, 64)),
    ],
)  # fmt: skip
def test_frame_size_of_each_coding(name: str, size: tuple[int, int]) -> None:
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(sample(name)))
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    assert parse_frame_header(stream) == Frame(*size, components=1)


def test_the_codestream_inside_a_jp2_file_is_parsed() -> None:
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(sample("jpeg-2000")))
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    signature = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
    box = struct.pack(">I", len(stream) + 8) + b"jp2c"
    assert parse_frame_header(signature + box + stream) == Frame(32, 40, 1)


def test_progressive_hierarchical_and_broken_streams_are_rejected() -> None:
    good = jpeg_lossless(RAMP, 12)
    at = good.index(b"\xff\xc3")
    for marker in (0xC2, 0xC5, 0xC6, 0xC7, 0xDE, 0xDF):  # no DICOM transfer syntax uses these
        assert parse_frame_header(good[: at + 1] + bytes([marker]) + good[at + 2 :]) is None
    assert parse_frame_header(good[: at + 8]) is None
    assert parse_frame_header(b"") is None and parse_frame_header(b"\xff\xd8" + bytes(99)) is None


def test_components_are_read() -> None:
    good = jpeg_lossless(RAMP, 12)
    at = good.index(b"\xff\xc3") + 9
    assert parse_frame_header(good[:at] + b"\xff" + good[at + 1 :]) == Frame(32, 40, 255)


def test_a_sequential_scan_must_cover_all_coefficients() -> None:
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(sample("jpeg")))
    good = next(generate_frames(dataset.PixelData, number_of_frames=1))
    at = good.index(b"\xff\xda") + 7  # after marker, length, count, component and tables
    assert good[at : at + 3] == b"\x00\x3f\x00" and covers_all_coefficients(good)
    assert not covers_all_coefficients(good[:at] + b"\x00\x00\x00" + good[at + 3 :])
    # In lossless streams these bytes are the predictor and the point transform.
    for other in (jpeg_lossless(RAMP, 12), b"", good[: at - 8], b"\xff\xd8" + bytes(99)):
        assert covers_all_coefficients(other)
