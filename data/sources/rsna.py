"""RSNA Pneumonia Detection Challenge: DICOM files, one row per box, one class per image; no reports.

Layout (Kaggle): ``stage_2_train_labels.csv`` (patientId, x, y, width, height, Target),
``stage_2_detailed_class_info.csv`` (patientId, class), ``stage_2_train_images/<patientId>.dcm``. Boxes are ignored;
``stage_2_test_images`` has no labels and is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.reports.label_names import closed_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import find_table, grouped, read_table, required_table

_LISTED = ("Pneumonia", "Lung Opacity", "No Finding")
_CLASSES: dict[str, tuple[str, ...]] = {
    "normal": ("No Finding",),
    "lung opacity": ("Pneumonia", "Lung Opacity"),
    "no lung opacity / not normal": (),
}


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield one study per image; patientId identifies the image. There is no official split with labels.

    The label list is closed: Pneumonia (Target) and, with the class table, Lung Opacity and No Finding are 1 or 0.

    Raises:
        UserError: if the label table is missing or lacks a column.
    """
    table = required_table(root, "stage_2_train_labels", "RSNA's stage 2")
    rows = read_table(table, ("patientId", "Target"), problems, needed=("patientId", "Target"))
    class_table = find_table(root, "stage_2_detailed_class_info")
    classes: dict[str, str] = {}
    if class_table is None:
        problems.append(Problem("no table stage_2_detailed_class_info.csv: Pneumonia is the only label", str(root)))
    else:
        class_rows = read_table(class_table, ("patientId", "class"), problems)
        classes = {row["patientId"]: row["class"] for row in class_rows}
    for image, boxes in grouped(rows, lambda row: row["patientId"]).items():
        named = classes.get(image, "").lower()
        if named in _CLASSES:
            stated = _CLASSES[named]
            labels = closed_labels(stated, _LISTED)
        else:
            if class_table is not None:
                problems.append(Problem("image without a known class", boxes[0].where))
            stated = ("Pneumonia",) if boxes[0]["Target"] in ("1", "1.0") else ()
            labels = closed_labels(stated, ["Pneumonia"])
        views = (View(root / "stage_2_train_images" / f"{image}.dcm"),)
        yield StudyRecord(image, image, views, labels=labels, label_names=stated)
