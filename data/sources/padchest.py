"""PadChest: 16-bit PNG files, Spanish reports (stemmed by its makers), and labels as lists.

Layout (BIMCV): ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]``, images ``{ImageDir}/{ImageID}``. Of
its columns ImageID, ImageDir, StudyID, PatientID, StudyDate_DICOM, Projection, Report and Labels (a Python list as
text) are read.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.reports.label_names import positive_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import Row, grouped, read_table, required_table

_NEEDED = ("ImageID", "ImageDir", "StudyID", "PatientID")
_POSITIONS = {"L": "LATERAL", "AP_horizontal": "AP", "AP-horizontal": "AP"}


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Studies in the order of the table, with what was found as positive labels; the list is open.

    Raises:
        UserError: if the table is absent or lacks a column.
    """
    table = required_table(root, "PADCHEST_chest_x_ray_images_labels_160K*", "PadChest")
    columns = (*_NEEDED, "Projection", "Report", "Labels")
    rows = read_table(table, columns, problems, needed=_NEEDED, optional=["StudyDate_DICOM"])
    for (patient, study), group in grouped(rows, lambda row: (row["PatientID"], row["StudyID"])).items():
        yield StudyRecord(
            study_id=f"{patient}/{study}",
            patient_id=patient,
            views=tuple(
                # pandas writes a column of numbers with a blank in it as 12.0
                View(root / row["ImageDir"].removesuffix(".0") / row["ImageID"], _position(row["Projection"]))
                for row in group
            ),
            findings=group[0]["Report"],
            labels=positive_labels(name for row in group for name in _names(row, problems)),
            taken=group[0]["StudyDate_DICOM"].removesuffix(".0"),
        )


def _position(projection: str) -> str:
    return _POSITIONS.get(projection, projection)


def _names(row: Row, problems: list[Problem]) -> list[str]:
    """The cell "['pleural effusion', ' cardiomegaly']" as names; a blank is none."""
    try:
        names = ast.literal_eval(row["Labels"] or "[]")
        return [str(name) for name in names]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        problems.append(Problem("Labels is not a list", row.where))
        return []
