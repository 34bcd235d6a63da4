"""Encode a phantom image as a DICOM file, using pydicom."""

import io
from collections.abc import Mapping

import numpy as np
from numpy import ndarray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, RLELossless

Value = str | int | tuple[str, ...]

# Derived once from a random UUID, as PS3.5 B.2 allows.
IMPLEMENTATION_UID = "2.25.49641623370334894472737833935898052062"


def encode_dicom(elements: Mapping[str, Value], pixels: ndarray, syntax: str) -> bytes:
    """Return a complete DICOM file: preamble, file meta information, data set. Equal arguments give equal bytes.

    Args:
        elements: {keyword: value} without the pixel data; a multi-valued element is a tuple. SOPClassUID and
            SOPInstanceUID are required, since the file meta information repeats them.
        pixels: (H, W) unsigned 16-bit stored values.
        syntax: UID of the transfer syntax: implicit, explicit or deflated explicit VR little endian, or RLE lossless.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    dataset.file_meta.ImplementationVersionName = "MEDUNIFIER"  # pydicom's default changes with its version
    for name, value in elements.items():
        setattr(dataset, name, list(value) if isinstance(value, tuple) else value)
    stored = np.ascontiguousarray(pixels, dtype="<u2")
    if syntax == RLELossless:
        dataset.compress(syntax, stored, encoding_plugin="pydicom", generate_instance_uid=False)
    else:
        dataset.PixelData = stored.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
