"""Files of drawn radiographs, marked so that nobody takes them for a patient's.

PNG: text chunks. DICOM: a Secondary Capture with ``ImageType DERIVED\\SECONDARY``, a derivation description,
fresh UIDs, and no patient.
"""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from shared.artifacts import atomic_file

NOTICE = "Synthetic image drawn by a model. It shows no patient. Not for diagnosis."


def save_synthetic_png(path: Path, pixels: np.ndarray, description: str) -> None:
    """(H, W) in [0, 1] -> 8-bit PNG with the notice and a description in its text chunks."""
    marks = PngInfo()
    marks.add_text("Comment", NOTICE)
    marks.add_text("Source", "synthetic")
    marks.add_text("Software", "medunifier")
    marks.add_itxt("Description", description)
    with atomic_file(path) as partial:
        Image.fromarray(_to_uint8(pixels)).save(partial, format="PNG", pnginfo=marks)


def save_synthetic_dicom(path: Path, pixels: np.ndarray, description: str, view: str) -> None:
    """(H, W) in [0, 1] -> 8-bit MONOCHROME2 Secondary Capture without any patient.

    Args:
        path: the file.
        pixels: the radiograph.
        description: how it was made; cut to the 1,024 characters of DerivationDescription.
        view: ViewPosition, "" if unknown.
    """
    values = _to_uint8(pixels)
    now = datetime.now(UTC)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = f"{NOTICE} {description}"[:1024]
    dataset.ConversionType = "SYN"
    dataset.Modality = "OT"
    dataset.Manufacturer = "medunifier"
    dataset.PatientName = dataset.PatientID = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.StudyTime = dataset.ContentTime = now.strftime("%H%M%S")
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.SeriesDescription = "SYNTHETIC"
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientOrientation = "CHEST", view, ""
    dataset.BurnedInAnnotation = "NO"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    content = values.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    with atomic_file(path) as partial:
        dataset.save_as(partial, enforce_file_format=True)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
