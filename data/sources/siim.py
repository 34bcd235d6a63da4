"""SIIM-ACR Pneumothorax: DICOM files, and run-length encoded masks of Pneumothorax; no reports.

Layout (Kaggle): ``train-rle.csv`` (ImageId, EncodedPixels with a leading space; "-1" = none; one row per mask
of an image), images ``dicom-images-train/<study>/<series>/<ImageId>.dcm``, anywhere
under the root. ``dicom-images-test`` has no labels and is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.reports.label_names import closed_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import files_by_stem, grouped, read_table, required_table


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield one study and one patient per image. There is no official split.

    The label list is closed and has one entry: Pneumothorax is 1 or 0.

    Raises:
        UserError: if the table is missing or lacks a column.
    """
    table = required_table(root, "train-rle", "SIIM-ACR")
    rows = read_table(table, ("ImageId", "EncodedPixels"), problems, needed=("ImageId", "EncodedPixels"))
    paths = files_by_stem(".dcm", root, options, problems)
    for image, masks in grouped(rows, lambda row: row["ImageId"]).items():
        runs = tuple(("Pneumothorax", row["EncodedPixels"]) for row in masks if row["EncodedPixels"] != "-1")
        yield StudyRecord(
            study_id=image,
            patient_id=image,
            views=(View(paths.get(image, root / "dicom-images-train" / f"{image}.dcm"), masks=runs),),
            labels=closed_labels(["Pneumothorax"] if runs else [], ["Pneumothorax"]),
            label_names=("Pneumothorax",) if runs else (),
        )
