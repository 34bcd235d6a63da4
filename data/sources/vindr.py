"""VinDr-CXR 1.0.0: DICOM files and image labels by three readers (test: one consensus); no reports.

Layout (PhysioNet): ``train/<image_id>.dicom``, ``test/<image_id>.dicom``, ``annotations/image_labels_train.csv``
(image_id, rad_id, 28 labels; one row per reader), ``annotations/image_labels_test.csv`` (no rad_id). Bounding boxes
are ignored.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import TRAIN_AND_VALIDATE, Problem, StudyRecord, View
from medunifier.data.reports.label_names import closed_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import Row, grouped, read_table, required_table, table_columns

# Labels that map to one of the 14 observations; the others (aortic enlargement, ILD, tuberculosis, …) are omitted.
LABELS = (
    "Atelectasis", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema", "Infiltration", "Lung Opacity",
    "Lung tumor", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumonia", "Pneumothorax",
    "Rib fracture", "No finding",
)  # fmt: skip
_KNOWN = {name.casefold() for name in (*LABELS, "image_id", "rad_id")}


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield one study and one patient per image, since nothing links the images.

    A label is 1 if most readers marked it. The list is closed, so the others are 0.

    Raises:
        UserError: if a table is missing or lacks a column.
    """
    for folder, split in (("train", TRAIN_AND_VALIDATE), ("test", "test")):
        table = required_table(root, f"annotations/image_labels_{folder}", "VinDr-CXR")
        columns = table_columns(table)
        others = [name for name in columns if name.strip().casefold() not in _KNOWN]
        rows = read_table(table, ("image_id", *LABELS), problems, needed=["image_id"], optional=others)
        for image, readings in grouped(rows, lambda row: row["image_id"]).items():
            yield StudyRecord(
                study_id=image,
                patient_id=image,
                views=(View(root / folder / f"{image}.dicom"),),
                labels=closed_labels((name for name in LABELS if _most_ticked(name, readings)), LABELS),
                label_names=tuple(name for name in (*LABELS, *others) if _most_ticked(name, readings)),
                split=split,
            )


def _most_ticked(name: str, readings: list[Row]) -> bool:
    return 2 * sum(reading[name] in ("1", "1.0") for reading in readings) > len(readings)
