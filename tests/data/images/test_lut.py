"""Modality and VOI lookup tables (PS3.3 C.11.1.1, C.11.2.1.1): encodings, range, and parity with pydicom."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medunifier.data.images.lut import read_table
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import read_radiograph
from tests.data.dicom_samples import RAMP
from tests.data.images.test_dicom import dicom_dataset, saved

VOI, MODALITY = "VOILUTSequence", "ModalityLUTSequence"


def lut_item(entries: object, descriptor: list[int], vr: str = "US", descriptor_vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", descriptor_vr, descriptor)
    item.add_new("LUTData", vr, entries.tolist() if isinstance(entries, np.ndarray) else entries)
    return item


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.dcm"


def squares(count: int, bits: int) -> np.ndarray:
    """A curve from 0 to 2^bits - 1, whose entries differ from each other's neighbours in both bytes."""
    return np.rint((np.arange(count) / (count - 1)) ** 2 * (2**bits - 1)).astype(np.uint16)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("sequence", [VOI, MODALITY])
def test_entries_of_every_depth_packing_and_encoding(path: Path, sequence: str, syntax: UID) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    for bits, count in ((8, 4096), (8, 3999), (10, 4096), (12, 4096), (16, 4096)):
        entries = squares(count, bits)
        octets = entries.astype(np.uint8).tobytes() + b"\0" * (count % 2)
        packed = np.frombuffer(octets, "<u2")
        forms = [("US", entries), ("OW", entries.astype(order + "u2").tobytes())]
        if bits == 8:
            forms += [("US", packed), ("OW", packed.astype(order + "u2").tobytes())]
            if syntax != ImplicitVRLittleEndian:
                forms.append(("OB", octets))
        for vr, data in forms:
            ds = dicom_dataset(PixelData=RAMP.astype(order + "u2").tobytes())
            ds.file_meta.TransferSyntaxUID = syntax
            setattr(ds, sequence, [lut_item(data, [count, 0, bits], vr)])
            expected = entries[np.minimum(RAMP, count - 1)] / (2**bits - 1)
            found = read_radiograph(saved(ds, path))
            assert np.allclose(found, expected, atol=1e-6), (bits, count, vr, type(data))


@pytest.mark.parametrize("sequence", [VOI, MODALITY])
def test_values_are_those_of_pydicom(sequence: str) -> None:
    apply = {VOI: apply_voi, MODALITY: apply_modality_lut}[sequence]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        signed = bool(rng.integers(2))
        low, high = (-2048, 2047) if signed else (0, 4095)
        values = rng.integers(low, high + 1, (20, 20)).astype(np.int16 if signed else np.uint16)
        first, count = int(rng.integers(low, high) if signed else rng.integers(0, high)), int(rng.integers(2, 5000))
        bits = 16 if sequence == VOI else int(rng.choice([8, 16]))  # pydicom's index into a VOI LUT of 8 bits wraps
        entries = rng.integers(0, 2**bits, count)
        ds = Dataset()
        setattr(ds, sequence, [lut_item(entries, [count, first, bits], descriptor_vr="SS" if signed else "US")])
        table = read_table(ds, sequence, low, high)
        assert table is not None and np.array_equal(table.apply(values), apply(values, ds)), seed


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_the_first_value_is_signed_as_its_input(path: Path, syntax: UID) -> None:
    """Whatever the VR of the descriptor. Its other two values are never signed."""
    entries = squares(40_000, 16)
    for vr in ("US", "SS"):
        for pixel_representation, first in ((1, -2048), (0, 40_000)):
            values = RAMP.astype(np.int64) + first
            ds = dicom_dataset(BitsStored=16, HighBit=15, PixelRepresentation=pixel_representation)
            ds.file_meta.TransferSyntaxUID = syntax
            ds.PixelData = values.astype("<i2" if pixel_representation else "<u2").tobytes()
            written = first % 2**16 if vr == "US" else (first + 2**15) % 2**16 - 2**15
            data = entries.astype("<u2").tobytes()  # too long for the VR US
            ds.VOILUTSequence = [lut_item(data, [40_000, written, 16], "OW", vr)]
            assert np.allclose(read_radiograph(saved(ds, path)), entries[RAMP] / 65_535, atol=1e-6), (vr, first)


def test_a_voi_table_after_rescale_takes_rescaled_values(path: Path) -> None:
    entries = squares(4096, 12)
    table = lut_item(entries, [4096, -1024, 12], descriptor_vr="SS")
    shifted = dicom_dataset(VOILUTSequence=[table], RescaleSlope="1", RescaleIntercept="-1024")
    assert np.allclose(read_radiograph(saved(shifted, path)), entries[RAMP] / 4095, atol=1e-6)
    halved = dicom_dataset(
        VOILUTSequence=[lut_item(entries, [4096, 0, 12])], RescaleSlope="0.5", RescaleIntercept="0"
    )
    assert np.allclose(read_radiograph(saved(halved, path)), entries[np.rint(RAMP / 2).astype(int)] / 4095, atol=1e-6)


def test_no_entries_stated_are_65536(path: Path) -> None:
    entries = squares(65_536, 16)
    values = (RAMP.astype(np.uint32) * 17).astype("<u2")
    ds = dicom_dataset(BitsStored=16, HighBit=15, PixelData=values.tobytes())
    for vr in ("OW", "UN"):  # the length of the VR US has 16 bits
        ds.VOILUTSequence = [lut_item(entries.astype("<u2").tobytes(), [0, 0, 16], vr)]
        assert np.allclose(read_radiograph(saved(ds, path)), entries[values] / 65_535, atol=1e-6), vr


@pytest.mark.parametrize("sequence", [VOI, MODALITY])
def test_the_range_of_entries_narrower_or_wider_than_declared(path: Path, sequence: str) -> None:
    """16 bits may be the storage; fewer bits are a statement unless an entry exceeds them."""
    for actual, declared, used in (
        (12, 16, 12), (10, 16, 10), (8, 16, 8), (11, 16, 12), (15, 16, 16), (10, 12, 12), (12, 8, 12), (16, 12, 16),
        (12, 0, 12),
    ):  # fmt: skip
        entries = squares(4096, actual)
        ds = dicom_dataset(**{sequence: [lut_item(entries, [4096, 0, declared])]})
        found = read_radiograph(saved(ds, path))
        assert np.allclose(found, entries[RAMP] / (2**used - 1), atol=1e-6), (actual, declared)
    octets = squares(4096, 8).astype(np.uint8)  # packed, by the length of the data
    ds = dicom_dataset(**{sequence: [lut_item(octets.tobytes(), [4096, 0, 16], "OW")]})
    assert np.allclose(read_radiograph(saved(ds, path)), octets[RAMP] / 255, atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_data_shorter_and_longer_than_declared(path: Path, vr: str) -> None:
    entries = squares(4096, 12)
    for length in (3000, 4000, 4096, 4097, 5000):
        data = np.resize(entries, length)
        data[4096:] = 9  # is cut off
        content = data if vr == "US" else data.astype("<u2").tobytes()
        ds = dicom_dataset(VOILUTSequence=[lut_item(content, [4096, 0, 12], vr)])
        expected = data[np.minimum(RAMP, min(length, 4096) - 1)] / 4095
        assert np.allclose(read_radiograph(saved(ds, path)), expected, atol=1e-6), length
    few = entries[:1000] if vr == "US" else entries[:1000].astype("<u2").tobytes()
    with pytest.raises(UnreadableImage, match="VOI LUT.*half"):
        read_radiograph(saved(dicom_dataset(VOILUTSequence=[lut_item(few, [4096, 0, 12], vr)]), path))


def test_a_table_without_descriptor_is_refused_and_one_without_data_ignored(path: Path) -> None:
    item = lut_item(squares(4096, 12), [4096, 0, 12])
    del item.LUTDescriptor
    with pytest.raises(UnreadableImage, match="modality LUT.*descriptor"):
        read_radiograph(saved(dicom_dataset(ModalityLUTSequence=[item]), path))
    for vr, nothing in (("US", None), ("OW", b"")):
        ds = dicom_dataset(VOILUTSequence=[lut_item(nothing, [4096, 0, 12], vr)], WindowCenter=2048, WindowWidth=1001)
        assert np.allclose(read_radiograph(saved(ds, path)), np.clip((RAMP - 2047.5) / 1000 + 0.5, 0, 1), atol=1e-5)


def test_a_window_after_a_modality_table_is_in_the_units_of_its_entries(path: Path) -> None:
    entries = squares(4096, 12)
    ds = dicom_dataset(ModalityLUTSequence=[lut_item(entries, [4096, 0, 16])], WindowCenter=1000, WindowWidth=801)
    expected = np.clip((entries[RAMP].astype(float) - 999.5) / 800 + 0.5, 0, 1)
    assert np.allclose(read_radiograph(saved(ds, path)), expected, atol=1e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
def test_inversion_follows_tables_and_windows(path: Path, photometric: str, shape: str | None) -> None:
    """PS3.3 C.7.6.3.1.2: the minimum is white after any VOI transformation. Once, whichever tag states it."""
    table = lut_item(squares(4096, 12), [4096, 0, 12])
    for changes in (
        {"WindowCenter": 1500, "WindowWidth": 11},  # one value is a tenth of the range
        {"WindowCenter": 1500, "WindowWidth": 300, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 1500, "WindowWidth": 300, "VOILUTFunction": "SIGMOID"},
        {"VOILUTSequence": [table]},
        {"ModalityLUTSequence": [table], "WindowCenter": 300, "WindowWidth": 101},
        {"RescaleSlope": "-1", "RescaleIntercept": "4095", "WindowCenter": 1500, "WindowWidth": 11},
    ):
        plain = read_radiograph(saved(dicom_dataset(**changes), path))
        ds = dicom_dataset(**changes, PhotometricInterpretation=photometric)
        if shape:
            ds.PresentationLUTShape = shape
        inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
        found = read_radiograph(saved(ds, path))
        assert np.allclose(found, 1 - plain if inverted else plain, atol=1e-6), changes
