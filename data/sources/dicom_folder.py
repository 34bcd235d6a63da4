"""A folder of DICOM files, as exported from a hospital's archive: grouped by patient and study of the headers.

A report may be next to a file, with the same name (``image.dcm``, ``image.txt`` or ``image.dcm.txt``), or next to a
folder whose files are all of one study (``study/…dcm``, ``study.txt``).
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from medunifier.data.files.names import report_names
from medunifier.data.files.walk import ImageFile, find_images, summary
from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.remote_paths import is_file
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import read_report
from medunifier.shared.errors import UserError

Study = tuple[str, str]
"""Patient and study of the header."""


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in the order of their first file.

    A file without a study in its header is a separate study; a study without a patient is a separate patient. A file
    that names neither is a problem: as patients of their own, a person's images could get into two splits. A damaged
    file is kept, and refused when its pixels are decoded, if its header still names one of them. Whatever else is no
    DICOM image is a problem.

    Raises:
        UserError: if files were left out and no DICOM image is left. The message counts them by reason.
    """
    left_out: list[Problem] = []
    studies: dict[Study, list[Path]] = defaultdict(list)
    moments: dict[Study, str] = {}
    for image in find_images(root, left_out, options.outside_root):
        if reason := _unusable(image):
            left_out.append(Problem(reason, str(image.path)))
            continue
        name = str(image.path.relative_to(root))
        patient, study = image.identity.patient, image.identity.study
        key = patient or study, study or name
        studies[key].append(image.path)
        moments.setdefault(key, image.identity.taken)
    if left_out and not studies:
        problems += left_out
        raise UserError(f"no readable radiograph under {root}: {summary(left_out)}")
    folders = _study_folders(studies, root)
    reports: set[str] = set()
    for (patient, study), paths in studies.items():
        named = (*paths, *folders[patient, study])
        beside = [path.with_name(name) for path in named for name in report_names(path.name)]
        present = [path for path in beside if is_file(path)]
        reports |= {str(path) for path in present}
        texts = [(path, text) for path in present if (text := read_report(path, root, options, problems)).strip()]
        for path, text in texts[1:]:
            if text.strip() != texts[0][1].strip():
                problems.append(Problem("another report of the same study, whose first one is used", str(path)))
        yield StudyRecord(
            study_id=f"{patient}/{study}",
            patient_id=patient,
            views=tuple(View(path) for path in paths),
            report=texts[0][1] if texts else "",
            taken=moments[patient, study],
        )
    problems += [problem for problem in left_out if problem.where not in reports]


def _unusable(image: ImageFile) -> str:
    if image.kind in ("png", "jpeg"):
        return "PNG or JPEG file, without a patient: the csv source reads these"
    if image.identity.patient or image.identity.study:
        return ""
    if image.kind == "damaged":
        return "damaged: named like an image, or DICOM, but its header cannot be read"
    return "no PatientID and no StudyInstanceUID in the header: the csv source takes them from a table"


def _study_folders(studies: dict[Study, list[Path]], root: Path) -> dict[Study, list[Path]]:
    """Return the folders below the root whose images all belong to one study, the innermost first."""
    holds: dict[Path, set[Study]] = defaultdict(set)
    for study, paths in studies.items():
        for path in paths:
            for folder in path.parents:
                if folder == root:
                    break
                holds[folder].add(study)
    folders: dict[Study, list[Path]] = {study: [] for study in studies}
    for folder in sorted(holds, key=lambda folder: -len(folder.parts)):
        if len(holds[folder]) == 1:
            folders[next(iter(holds[folder]))].append(folder)
    return folders
