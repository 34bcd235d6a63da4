"""A folder of DICOM files, as exported from a hospital's archive: grouped by patient and study of the headers.

A report may be next to a file, with the same name (``image.dcm``, ``image.txt``), or next to the study's folder
(``study/…dcm``, ``study.txt``).
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pydicom

from medunifier.data.images.dicom import DicomFile
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.remote_paths import open_file
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import read_report
from medunifier.shared.errors import UserError

_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima", ""}
_TAGS = ["PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDate", "StudyTime"]


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in the order of their first file; a file without a readable header is a separate study."""
    studies: dict[tuple[str, str], list[Path]] = defaultdict(list)
    moments: dict[tuple[str, str], str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and _looks_like_dicom(path):
            patient, study, taken = _patient_study_and_moment(path, root)
            studies[patient, study].append(path)
            moments.setdefault((patient, study), taken)
    for (patient, study), paths in studies.items():
        yield StudyRecord(
            study_id=f"{patient}/{study}",
            patient_id=patient,
            views=tuple(View(path) for path in paths),
            report=_report(paths, root, options, problems),
            taken=moments[patient, study],
        )


def _looks_like_dicom(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    # Exported files may be named after UIDs ("1.2.840.10008"), whose last number is not a suffix.
    return suffix in _SUFFIXES or suffix[1:].isdigit()


def _patient_study_and_moment(path: Path, root: Path) -> tuple[str, str, str]:
    own = str(path.relative_to(root))
    if path.name.lower().endswith(".gz"):
        return own, own, ""  # compressed: not decompressed twice for the header
    try:
        with open_file(path) as file:
            header = pydicom.dcmread(DicomFile(file), force=True, stop_before_pixels=True, specific_tags=_TAGS)
        patient, study = str(header.get("PatientID") or ""), str(header.get("StudyInstanceUID") or "")
        day, time = str(header.get("StudyDate") or ""), str(header.get("StudyTime") or "").partition(".")[0]
    except UserError as error:
        if not isinstance(error, UnreadableImage):  # of a remote file system
            raise
        patient = study = day = time = ""
    except Exception:  # a damaged header raises any of them, RecursionError and zlib.error included
        patient = study = day = time = ""  # the reason is reported when its pixels are decoded
    taken = f"{day}T{time}" if len(day) == 8 and day.isdigit() else ""
    return patient or study or own, study or own, taken


def _report(paths: list[Path], root: Path, options: SourceOptions, problems: list[Problem]) -> str:
    beside = [path.with_suffix(".txt") for path in paths]
    if paths[0].parent != root:
        beside.append(paths[0].parent.with_suffix(".txt"))
    return next((text for path in beside if (text := read_report(path, root, options, problems))), "")
