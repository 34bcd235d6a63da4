"""NIH ChestX-ray14: PNG files, and labels mined from unreleased reports.

Layout (NIH Clinical Center): ``Data_Entry_2017_v2020.csv`` (Image Index, Finding Labels joined by "|", Patient ID,
View Position, …), images ``images_001/images/*.png`` … ``images_012`` or anywhere else under the root,
``train_val_list.txt`` and ``test_list.txt`` with one file name per line.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import TRAIN_AND_VALIDATE, Problem, StudyRecord, View
from medunifier.data.reports.label_names import closed_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import files_by_stem, read_table, read_text, required_table
from medunifier.shared.files.text import text_lines

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Infiltration", "Mass", "Nodule",
    "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding",
)  # fmt: skip
"""NIH's labels that map to CheXpert's 14 observations: all but Emphysema, Fibrosis, Hernia."""


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield one study per image, in table order. The label list is closed: findings that are not named are 0.

    Raises:
        UserError: if the table is missing or lacks a column.
    """
    table = required_table(root, "Data_Entry_2017*", "NIH ChestX-ray14")
    needed = ("Image Index", "Patient ID", "Finding Labels")
    rows = read_table(table, (*needed, "View Position"), problems, needed=needed)
    splits = _splits(root, problems)
    pictures = files_by_stem(".png", root, options, problems)
    for row in rows:
        name = row["Image Index"]
        stem = name[:-4] if name.lower().endswith(".png") else name
        found = tuple(row["Finding Labels"].split("|"))
        yield StudyRecord(
            study_id=name,
            patient_id=row["Patient ID"],
            views=(View(pictures.get(stem, root / "images" / name), row["View Position"]),),
            labels=closed_labels(found, LABELS),
            label_names=found,
            split=splits.get(name),
        )


def _splits(root: Path, problems: list[Problem]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for name, split in (("train_val_list.txt", TRAIN_AND_VALIDATE), ("test_list.txt", "test")):
        if (root / name).is_file():
            names = (line.strip() for line in text_lines(read_text(root / name)))
            splits |= dict.fromkeys((image for image in names if image), split)
        else:
            problems.append(Problem(f"no {name}: patients are split anew", str(root)))
    # One list alone does not determine the split of the other patients.
    return splits if len(set(splits.values())) == 2 else {}
