"""PadChest: 16-bit PNG files, Spanish reports (published stemmed), and labels as lists.

Layout (BIMCV): ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]``, images ``{ImageDir}/{ImageID}``.
Columns used: ImageID, ImageDir, StudyID, PatientID, StudyDate_DICOM, Projection, Report and Labels (a Python list
as text).
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
    """Yield the studies in table order, with their findings as positive labels; the label list is open.

    Raises:
        UserError: if the table is missing or lacks a column.
    """
    table = required_table(root, "PADCHEST_chest_x_ray_images_labels_160K*", "PadChest")
    columns = (*_NEEDED, "Projection", "Report", "Labels")
    rows = read_table(table, columns, problems, needed=_NEEDED, optional=["StudyDate_DICOM"])
    for (patient, study), group in grouped(rows, lambda row: (row["PatientID"], row["StudyID"])).items():
        names = tuple(name for row in group for name in _names(row, problems))
        yield StudyRecord(
            study_id=f"{patient}/{study}",
            patient_id=patient,
            views=tuple(
                # pandas writes integers as 12.0 if the column contains blanks
                View(root / row["ImageDir"].removesuffix(".0") / row["ImageID"], _position(row["Projection"]))
                for row in group
            ),
            findings=group[0]["Report"],
            labels=positive_labels(names),
            label_names=names,
            taken=group[0]["StudyDate_DICOM"].removesuffix(".0"),
        )


def _position(projection: str) -> str:
    return _POSITIONS.get(projection, projection)


def _names(row: Row, problems: list[Problem]) -> list[str]:
    """Parse the cell "['pleural effusion', ' cardiomegaly']" to names; a blank cell has none."""
    try:
        names = ast.literal_eval(row["Labels"] or "[]")
        return [str(name) for name in names]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        problems.append(Problem("Labels is not a list", row.where))
        return []
