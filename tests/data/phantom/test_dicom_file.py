"""A phantom's DICOM file round-trips in each of the four transfer syntaxes."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medunifier.data.phantom.dicom_file import encode_dicom

ELEMENTS = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
    "SOPInstanceUID": "1.2.3.45",
    "ImageType": ("DERIVED", "SECONDARY", "", "ODD"),
    "PatientName": "",
    "WindowCenter": ("16383.500", "2"),
    "PixelIntensityRelationshipSign": -1,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "Rows": 7,
    "Columns": 5,
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
}
PIXELS = np.random.default_rng(0).integers(0, 4096, (7, 5), dtype=np.uint16)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_elements_and_pixels_round_trip_and_encoding_is_deterministic(syntax: str) -> None:
    written = encode_dicom(ELEMENTS, PIXELS, syntax)
    dataset = pydicom.dcmread(io.BytesIO(written))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert dataset.file_meta.MediaStorageSOPInstanceUID == ELEMENTS["SOPInstanceUID"]
    assert np.array_equal(dataset.pixel_array, PIXELS)
    for name, value in ELEMENTS.items():
        found = dataset[name].value
        assert tuple(map(str, found)) == value if isinstance(value, tuple) else found == value, name
    assert encode_dicom(ELEMENTS, PIXELS, syntax) == written
