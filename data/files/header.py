"""The identity of a DICOM file, from its header: patient, study and time. PatientName is not read."""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medunifier.data.files import header_values as values
from medunifier.data.files.kinds import GZIP, inflate_start
from medunifier.data.images.dicom import DicomFile, is_dicom
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.views import view_of_header, view_position
from medunifier.shared.errors import UserError

_TAGS = ["PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "SOPClassUID", "Rows"]
_VIEW_TAGS = ["ViewPosition", "ViewCodeSequence", "PatientOrientation"]
_FIRST_BYTES, _MORE_BYTES = 2**18, 2**26
"""Of a compressed file. The larger number is inflated only where the header is longer than the smaller."""
_META_BYTES = 2**16


@dataclass(frozen=True)
class Identity:
    """What groups the files of an archive; "" for what the header lacks."""

    patient: str = ""
    study: str = ""
    taken: str = ""
    """``20310405T081500``, or "" without a valid date."""
    view: str = ""
    """View position, "" if the header states none that is a term of the field."""
    has_image: bool = False
    """The header states the number of rows."""
    other_object: bool = False
    """A report, presentation state or other object of a class that has no pixels."""


def read_identity(file: BinaryIO) -> Identity:
    """Read the identity from an open DICOM file: plain, gzipped, deflated, with or without preamble.

    A damaged or truncated file gives what can be read of it, in the worst case an empty identity.

    Raises:
        UserError: if a remote file system fails.
    """
    identity = Identity()
    for most in (_FIRST_BYTES, _MORE_BYTES):
        file.seek(0)
        packed = file.read(2) == GZIP
        file.seek(0)
        plain = BytesIO(inflate_start(file, most)) if packed else file
        start = plain.read(_META_BYTES)
        data_set = _meta_end(start)
        deflated = DeflatedExplicitVRLittleEndian.encode() in start
        plain.seek(data_set if deflated else 0)
        identity = _identity(BytesIO(inflate_start(plain, most, raw=True)) if deflated else plain)
        if identity.has_image or not (packed or deflated):
            break
    return identity


def _identity(file: BinaryIO) -> Identity:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about every unusual value
            header = pydicom.dcmread(
                DicomFile(file), force=True, stop_before_pixels=True, specific_tags=_TAGS + _VIEW_TAGS
            )
            return _of_header(header)
    except UnreadableImage:  # a decompression bomb
        return Identity()
    except UserError:
        raise
    except Exception:  # a damaged header makes pydicom raise nearly anything: struct.error, RecursionError, …
        return Identity()


def _of_header(header: Dataset) -> Identity:
    found = {name: values.attribute(header, name) for name in _TAGS}
    day, clock = values.date(found["StudyDate"]), values.time(found["StudyTime"])
    class_name = UID(values.uid(found["SOPClassUID"])).name
    has_image = "Rows" in header
    return Identity(
        patient=values.long_string(found["PatientID"]),
        study=values.uid(found["StudyInstanceUID"]),
        taken=f"{day}T{clock}" if day else "",
        view=view_position(view_of_header(header)),
        has_image=has_image,
        other_object=not has_image and "Storage" in class_name and "Image Storage" not in class_name,
    )


def _meta_end(data: bytes) -> int:
    """Return the offset of the data set from the group length (0002,0000), the first element; 0 if it is absent."""
    if not is_dicom(data) or data[132:136] != b"\x02\x00\x00\x00" or len(data) < 144:
        return 0
    return 144 + int.from_bytes(data[140:144], "little")
