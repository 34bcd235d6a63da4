"""DICOM: every real file of the manifest, encodings of one image, and files that must be refused."""

import gzip
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from medunifier.data.images.dicom import decode_dicom, read_dicom
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_radiograph
from tests.data.dicom_samples import RAMP
from tests.files import read_csv


def dicom_dataset(**changes: object) -> Dataset:
    """Return a small valid DICOM data set; attributes can be changed, or removed by None."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
    ds.Modality, ds.ViewPosition, ds.BodyPartExamined = "CR", "PA", "CHEST"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = RAMP.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = RAMP.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def saved(ds: Dataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.dcm"


# Files that the manifest marks as decodable but that are not a single grey image, with the expected reason.
REFUSED = {
    "derived/odd-constant-image.dcm": "constant",
    "odd/pydicom-SC_rgb_small_odd_jpeg.dcm": "colour",
    "odd/pydicom-emri_small_RLE.dcm": "10 frames",
}
REASONS = {
    "derived/broken-empty-pixeldata.dcm": "empty pixel data",
    "derived/broken-no-photometric.dcm": "PhotometricInterpretation",
    "derived/broken-no-pixeldata.dcm": "no pixel data",
    "derived/broken-rows-too-many.dcm": "truncated",
    "derived/broken-truncated-60pct.dcm": "truncated",
    "odd/made-empty.dcm": "empty file",
    "odd/made-not-a-dicom.dcm": "not a DICOM file",
    "odd/pydicom-JPEG-lossy.dcm": "scan header",
    "odd/pydicom-test-SR.dcm": "no pixel data",
    "radiograph-other/wg04-RG3_JPLY.dcm": "scan header",
}


def test_every_file_of_the_manifest(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("dicom")
    rows = read_csv(root / "manifest.csv")
    assert len(rows) == 49
    for row in rows:
        name = row["path"]
        try:
            radiograph = read_dicom(root / name)
        except UnreadableImage as error:
            assert name in REFUSED or row["decode"] != "ok", (name, error.reason)
            assert REFUSED.get(name, REASONS.get(name, "")) in error.reason, name
            assert len(error.reason) < 200 and str(root) not in error.reason
        else:
            assert row["decode"] == "ok" and name not in REFUSED, name
            assert radiograph.pixels.shape == (int(row["Rows"]), int(row["Columns"]))
            assert radiograph.pixels.dtype == np.float32
            assert 0 <= radiograph.pixels.min() < radiograph.pixels.max() <= 1
            assert (radiograph.view, radiograph.modality, radiograph.body_part) == (
                row["ViewPosition"],
                row["Modality"],
                row["BodyPartExamined"],
            )


def test_lossless_transcodes_and_inverted_values_agree(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("dicom")
    original = read_radiograph(root / "chest/barre-CR-MONO1-10-chest.dcm")
    for name in ("explicitBE", "explicitLE", "implicitLE-withmeta", "j2k-lossless", "jpegls-lossless", "rle"):
        assert np.array_equal(original, read_radiograph(root / f"derived/barre-chest-{name}.dcm")), name
    # Values and window are mirrored, and the linear window is asymmetric by half a value of its 1,023.
    inverted = read_radiograph(root / "derived/barre-chest-MONOCHROME2-inverted-values.dcm")
    assert np.abs(original - inverted).max() < 1.001 / 1023
    lossy = read_radiograph(root / "derived/barre-chest-j2k-lossy-cr10.dcm")
    assert 0 < np.abs(original - lossy).mean() < 0.01


def test_twelve_bit_jpeg(shared_data: Callable[[str], Path], path: Path) -> None:
    """NEMA's radiograph with the correct scan header; eight pixels ring beyond ten bits."""
    root = shared_data("dicom/radiograph-other")
    lossy = pydicom.dcmread(root / "wg04-RG3_JPLY.dcm")
    stream = next(generate_frames(lossy.PixelData, number_of_frames=1))
    at = stream.index(b"\xff\xda") + 7
    assert stream[at : at + 3] == b"\x00\x00\x00"
    lossy.PixelData = encapsulate([stream[:at] + b"\x00\x3f\x00" + stream[at + 3 :]])
    difference = np.abs(read_radiograph(saved(lossy, path)) - read_radiograph(root / "wg04-RG3_JPLL.dcm"))
    assert difference.mean() < 0.002 and difference.max() < 0.06


@pytest.mark.parametrize(("white", "refused"), [(126, False), (200, True)])
def test_ringing_beyond_the_range_is_clipped(path: Path, white: int, refused: bool) -> None:
    pixels = np.full((64, 64), 8, np.uint8)
    pixels[:, 37:] = white
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    stored = np.asarray(Image.open(buffer))
    assert stored.max() > 127
    ds = dicom_dataset(Rows=64, Columns=64, BitsAllocated=8, BitsStored=7, HighBit=6)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].VR = "OB"
    if refused:
        with pytest.raises(UnreadableImage, match="beyond the 7 bits"):
            read_radiograph(saved(ds, path))
    else:
        assert np.abs(read_radiograph(saved(ds, path)) - np.minimum(stored, 127) / 127).max() < 0.03


def test_the_range_without_window_is_that_of_the_bits(path: Path) -> None:
    assert np.allclose(read_radiograph(saved(dicom_dataset(), path)), RAMP / 4095, atol=1e-6)


def test_view_modality_and_body_part_come_from_the_header(path: Path) -> None:
    radiograph = read_dicom(saved(dicom_dataset(), path))
    assert (radiograph.view, radiograph.modality, radiograph.body_part, radiograph.bits) == ("PA", "CR", "CHEST", 12)


@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
def test_monochrome1_is_inverted_once(path: Path, shape: str | None) -> None:
    ds = dicom_dataset(PhotometricInterpretation="MONOCHROME1")
    if shape:
        ds.PresentationLUTShape = shape
    assert np.allclose(read_radiograph(saved(ds, path)), 1 - RAMP / 4095, atol=1e-6)


def test_linear_window_follows_the_standard(path: Path) -> None:
    """PS3.3 C.11.2.1.2.1: 0 up to c - 0.5 - (w - 1)/2, 1 above c - 0.5 + (w - 1)/2."""
    pixels = read_radiograph(saved(dicom_dataset(WindowCenter=2048, WindowWidth=1001), path))
    expected = np.clip((RAMP - 2047.5) / 1000 + 0.5, 0, 1)
    assert np.allclose(pixels, expected, atol=1e-5)


def test_other_window_functions(path: Path) -> None:
    exact = read_radiograph(
        saved(dicom_dataset(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"), path)
    )
    assert np.allclose(exact, np.clip((RAMP - 2048.0) / 1000 + 0.5, 0, 1), atol=1e-5)
    sigmoid = read_radiograph(
        saved(dicom_dataset(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID"), path)
    )
    assert np.allclose(sigmoid, 1 / (1 + np.exp(-4 * (RAMP - 2048.0) / 1000)), atol=1e-5)


def test_first_of_several_windows(path: Path) -> None:
    two = read_radiograph(saved(dicom_dataset(WindowCenter=[2048, 10], WindowWidth=[1001, 20]), path))
    one = read_radiograph(saved(dicom_dataset(WindowCenter=2048, WindowWidth=1001), path))
    assert np.array_equal(two, one)


@pytest.mark.parametrize("width", ["0", "1", ""])
def test_an_invalid_window_is_ignored(path: Path, width: str) -> None:
    assert np.allclose(
        read_radiograph(saved(dicom_dataset(WindowCenter="5", WindowWidth=width), path)), RAMP / 4095, atol=1e-6
    )


@pytest.mark.parametrize(("slope", "intercept"), [("2", "-100"), ("-1", "4095"), ("0.5", "7")])
def test_rescale_without_window_only_changes_direction(path: Path, slope: str, intercept: str) -> None:
    """The range is rescaled with the values; a falling slope mirrors them."""
    pixels = read_radiograph(saved(dicom_dataset(RescaleSlope=slope, RescaleIntercept=intercept), path))
    assert np.allclose(pixels, 1 - RAMP / 4095 if slope == "-1" else RAMP / 4095, atol=1e-5)


def test_window_is_in_rescaled_units(path: Path) -> None:
    plain = read_radiograph(saved(dicom_dataset(WindowCenter=2000, WindowWidth=1001), path))
    shifted = dicom_dataset(RescaleSlope="1", RescaleIntercept="-1000", WindowCenter=1000, WindowWidth=1001)
    assert np.allclose(read_radiograph(saved(shifted, path)), plain, atol=1e-5)


def test_signed_values(path: Path) -> None:
    signed = (RAMP.astype(np.int16) - 2048).astype("<i2")
    ds = dicom_dataset(PixelRepresentation=1, PixelData=signed.tobytes())
    assert np.allclose(read_radiograph(saved(ds, path)), RAMP / 4095, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_unused_bits_are_ignored(path: Path, signed: bool, compressed: bool) -> None:
    """PS3.5 8.1.1: constant, random, an overlay in one plane, or absent where a sign would be extended."""
    values = RAMP.astype(np.int64) - 2048 * signed
    rng = np.random.default_rng(0)
    plane = np.zeros(RAMP.shape, np.int64)
    plane[10:20, 5:30] = 1
    for unused in (0, 0xF, rng.integers(0, 16, RAMP.shape), plane, plane << 3):
        pixels = (values & 0xFFF | np.asarray(unused) << 12).astype("<u2")
        ds = dicom_dataset(PixelRepresentation=int(signed), PixelData=pixels.tobytes())
        if unused is plane:
            ds.add_new(0x60000100, "US", 16)
            ds.add_new(0x60000102, "US", 12)
        if compressed:
            ds.compress(RLELossless)
        assert np.allclose(read_radiograph(saved(ds, path)), RAMP / 4095, atol=1e-6)


def test_unused_bits_below_the_stored_ones_are_ignored(path: Path) -> None:
    pixels = RAMP << 4 | np.random.default_rng(0).integers(0, 16, RAMP.shape).astype(np.uint16)
    ds = dicom_dataset(PixelData=pixels.astype("<u2").tobytes(), HighBit=15)
    assert np.allclose(read_radiograph(saved(ds, path)), RAMP / 4095, atol=1e-6)
    unshifted = dicom_dataset(HighBit=15)  # the header is wrong: no value uses the bits above
    assert np.allclose(read_radiograph(saved(unshifted, path)), RAMP / 4095, atol=1e-6)


def test_values_that_continue_beyond_the_bits_are_refused(path: Path) -> None:
    """Masked, white would become black: BitsStored is too small, or the values are unsigned."""
    smooth = (np.indices((64, 64)).sum(axis=0) * 32).astype("<u2")
    for pixels, changes in (
        (RAMP, {"BitsStored": 11, "HighBit": 10}),
        (RAMP, {"PixelRepresentation": 1}),
        (smooth, {"BitsStored": 10, "HighBit": 9}),
        (np.sort(smooth, axis=0)[:, :1].repeat(64, axis=1), {"BitsStored": 10, "HighBit": 9}),
    ):
        rows, columns = pixels.shape
        ds = dicom_dataset(Rows=rows, Columns=columns, PixelData=pixels.tobytes(), **changes)
        with pytest.raises(UnreadableImage, match="beyond"):
            read_radiograph(saved(ds, path))


def test_voi_table(path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.arange(4096, dtype=np.uint32) ** 2 // 256).astype(np.uint16).tolist()
    ds = dicom_dataset(
        VOILUTSequence=[table], WindowCenter=1, WindowWidth=2
    )  # the LUT takes precedence over the window
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    assert np.allclose(read_radiograph(saved(ds, path)), (RAMP.astype(int) ** 2 // 256) / 65535, atol=1e-6)


def test_containers(path: Path) -> None:
    """Gzipped, deflated, run-length coded and without preamble: the same image."""
    plain = read_radiograph(saved(dicom_dataset(), path))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_radiograph(path), plain)

    deflated = dicom_dataset()
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert np.array_equal(read_radiograph(saved(deflated, path)), plain)

    coded = dicom_dataset()
    coded.compress(RLELossless)
    assert np.array_equal(read_radiograph(saved(coded, path)), plain)

    bare = dicom_dataset()
    del bare.file_meta
    bare.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(read_radiograph(path), plain)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PixelData": RAMP.tobytes()[:-100]}, "truncated"),
        ({"PixelData": b""}, "empty pixel data"),
        ({"PixelData": None}, "no pixel data"),
        ({"PixelData": np.full_like(RAMP, 7).tobytes()}, "constant"),
        ({"WindowCenter": -5000, "WindowWidth": 10}, "constant"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not grey"),
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"Rows": 65535, "Columns": 65535}, "too large"),
        ({"Rows": 3}, "too small"),
        ({"BitsStored": 10, "HighBit": 9}, "beyond the 10 bits"),
        ({"BitsStored": 17}, "17 bits"),
        ({"BitsStored": None}, "BitsStored"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "slope"),
    ],
)
def test_refused_with_a_reason(path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_dicom(saved(dicom_dataset(**changes), path))
    assert str(path) not in caught.value.reason


def test_a_stream_larger_than_its_header_is_refused(path: Path, shared_data: Callable[[str], Path]) -> None:
    ds = pydicom.dcmread(shared_data("dicom/derived/barre-chest-j2k-lossless.dcm"))
    ds.Rows = 400
    with pytest.raises(UnreadableImage, match="440 x 440"):
        read_dicom(saved(ds, path))


def test_an_inflating_bomb_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunifier.data.images.dicom.MAX_FILE_BYTES", 2**20)
    path.write_bytes(gzip.compress(bytes(2**21)))
    with pytest.raises(UnreadableImage, match="decompression"):
        read_dicom(path)
    bomb = dicom_dataset(PixelData=bytes(2**22))
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(UnreadableImage, match="decompression"):
        read_dicom(saved(bomb, path))


def test_a_bomb_is_refused_whatever_its_meta_information_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunifier.data.images.dicom.MAX_FILE_BYTES", 2**20)

    def element(number: int, vr: bytes, value: bytes) -> bytes:
        value += bytes(len(value) % 2)
        length = b"\0\0" + struct.pack("<I", len(value)) if vr == b"OB" else struct.pack("<H", len(value))
        return struct.pack("<HH", 2, number) + vr + length + value

    def deflated(content: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return packer.compress(content) + packer.flush()

    bomb, harmless = deflated(bytes(2**22)), deflated(bytes(10))
    syntax = element(0x10, b"UI", DeflatedExplicitVRLittleEndian.encode())
    late, decoy = element(1, b"OB", bytes(70_000)), element(0x102, b"OB", harmless)
    for meta, stated in (
        (syntax, len(syntax)), (syntax, 0), (syntax, 2**32 - 200), (late + syntax, 0), (late + syntax, 20),
        (syntax + decoy, len(syntax) + 12),
    ):  # fmt: skip
        content = bytes(128) + b"DICM" + element(0, b"UL", struct.pack("<I", stated)) + meta + bomb
        for data in (content, content[132:], content[:132] + content[144:]):  # without preamble, without length
            with pytest.raises(UnreadableImage, match="decompression"):
                decode_dicom(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3200), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 3300))
def test_mutations_are_decoded_or_refused(path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    buffer = BytesIO()
    dicom_dataset().save_as(buffer, enforce_file_format=True)
    data = bytearray(buffer.getvalue())
    for place, value in changes:
        # Half of the changes fall on the header, which is a tenth of the file.
        data[(place if place % 2 else place % 500) % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut % 200 if cut % 3 == 0 else len(data)]))
    try:
        pixels = read_radiograph(path)
    except UnreadableImage as error:
        assert error.reason
    else:
        assert pixels.dtype == np.float32 and 0 <= pixels.min() < pixels.max() <= 1
