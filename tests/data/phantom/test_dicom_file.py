"""Our writer of DICOM files against pydicom's, byte for byte, and its four transfer syntaxes."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from data.phantom.dicom_file import dicom_file

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
def test_pydicom_writes_the_same_bytes_of_what_it_read(syntax: str) -> None:
    ours = dicom_file(ELEMENTS, PIXELS, syntax)
    dataset = pydicom.dcmread(io.BytesIO(ours))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(dataset.pixel_array, PIXELS)
    assert {name: dataset.get(name) for name in ("Rows", "PixelIntensityRelationshipSign", "PatientName")} == {
        "Rows": 7, "PixelIntensityRelationshipSign": -1, "PatientName": "",
    }  # fmt: skip
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "", "ODD"]
    for element in dataset.iterall():
        _ = element.value  # parsed only now: what was read verbatim would be written verbatim
    theirs = io.BytesIO()
    dataset.save_as(theirs, enforce_file_format=True)
    assert theirs.getvalue() == ours
