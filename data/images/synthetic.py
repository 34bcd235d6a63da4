"""Write generated radiographs as files that are marked as synthetic.

PNG: text chunks. DICOM: a Secondary Capture with ``ImageType DERIVED\\SECONDARY``, ``SyntheticData YES``, a
derivation description, fresh UIDs, and no patient. The description holds only numbers and names of the 14
observations: a prompt may be a real report with a patient's name.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medunifier.data.images.views import view_position
from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import NEGATIVE, POSITIVE, UNCERTAIN
from medunifier.shared.artifacts import atomic_file
from medunifier.shared.files.grey_levels import to_uint8

NOTICE = "Synthetic image drawn by a model. It shows no patient. Not for diagnosis."
RECONSTRUCTION = "Synthetic image computed by a model from a radiograph, which may be a patient's. Not for diagnosis."
FOLLOW_UP = "Synthetic image drawn by a model behind a radiograph, which may be a patient's. Not for diagnosis."
_LONGEST_CODE_STRING = 16


def describe_generated_image(report: Mapping[str, str], *, model: str, seed: int, guidance: float) -> str:
    """Return the description of a generated image: model, seed, and what the report states and denies.

    Args:
        report: sections that the image was generated from. Only the observations that `label_report` finds in
            them are written.
        model: the model's fingerprint.
        seed, guidance: of the generation.
    """
    labels = label_report(" ".join(report.values()))
    said = ""
    for value, word in ((POSITIVE, "stated"), (NEGATIVE, "denied"), (UNCERTAIN, "uncertain")):
        if names := [name for name, label in labels.items() if label == value]:
            said += f" {word}: {', '.join(names)};"
    asked = said.rstrip(";") or " no observation"
    return f"Model {model[:16]}, seed {seed}, guidance {guidance:g}. Asked for:{asked}."


def save_synthetic_png(path: Path, pixels: np.ndarray, description: str, notice: str = NOTICE) -> None:
    """Write (H, W) pixels in [0, 1] as 8-bit PNG with the notice and the description in its text chunks."""
    marks = PngInfo()
    marks.add_text("Comment", notice)
    marks.add_text("Source", "synthetic")
    marks.add_text("Software", "medunifier")
    marks.add_itxt("Description", description)
    with atomic_file(path) as partial:
        Image.fromarray(to_uint8(pixels)).save(partial, format="PNG", pnginfo=marks)


def save_synthetic_dicom(path: Path, pixels: np.ndarray, description: str, view: str, notice: str = NOTICE) -> None:
    """(H, W) in [0, 1] -> 8-bit MONOCHROME2 Secondary Capture without any patient.

    Secondary Capture (PS3.3 A.8.1) and not Digital X-Ray: there was no detector, no tube and no exposure to state.

    Args:
        path: the file.
        pixels: the radiograph.
        description: how it was made; cut to the 1,024 characters of DerivationDescription.
        view: ViewPosition; what is no word of that field is left out.
        notice: what kind of image it is.
    """
    values = to_uint8(pixels)
    now = datetime.now(UTC)
    position = view_position(view).upper()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = f"{notice} {description}"[:1024]
    dataset.ConversionType = "SYN"  # of PS3.3 C.8.6.1's terms: synthetic image
    dataset.Modality = "OT"
    dataset.Manufacturer, dataset.SoftwareVersions = "medunifier", version("medunifier")
    dataset.PatientName = dataset.PatientID = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.StudyTime = dataset.ContentTime = now.strftime("%H%M%S")
    dataset.TimezoneOffsetFromUTC = "+0000"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    # A list of studies in a viewer shows these two, and little else.
    dataset.StudyID = dataset.SeriesDescription = "SYNTHETIC"
    dataset.BodyPartExamined, dataset.PatientOrientation = "CHEST", ""
    dataset.ViewPosition = position if len(position) <= _LONGEST_CODE_STRING else ""
    dataset.BurnedInAnnotation = "NO"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    content = values.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    with atomic_file(path) as partial:
        dataset.save_as(partial, enforce_file_format=True)
