"""NIH ChestX-ray14: PNG files and labels mined from reports that were never released.

Layout (NIH Clinical Center): ``Data_Entry_2017_v2020.csv`` (Image Index, Finding Labels joined by "|", Patient ID,
View Position, …), images ``images_001/images/*.png`` … ``images_012`` or wherever they were unpacked under the root,
``train_val_list.txt`` and ``test_list.txt`` with a file name a line.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import TRAIN_AND_VALIDATE, Problem, StudyRecord, View
from medunifier.data.reports.label_names import closed_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import files_by_stem, read_table, read_text, required_table

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Infiltration", "Mass", "Nodule",
    "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding",
)  # fmt: skip
"""Those of the fourteen of NIH that are of CheXpert's fourteen: not Emphysema, Fibrosis, Hernia."""


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """One study an image, in the order of the table. The list is closed: what was not named is 0.

    Raises:
        UserError: if the table is absent or lacks a column.
    """
    table = required_table(root, "Data_Entry_2017*", "NIH ChestX-ray14")
    needed = ("Image Index", "Patient ID", "Finding Labels")
    rows = read_table(table, (*needed, "View Position"), problems, needed=needed)
    splits = _splits(root, problems)
    pictures = files_by_stem(root, ".png")
    for row in rows:
        name = row["Image Index"]
        yield StudyRecord(
            study_id=name,
            patient_id=row["Patient ID"],
            views=(View(pictures.get(name.removesuffix(".png"), root / "images" / name), row["View Position"]),),
            labels=closed_labels(row["Finding Labels"].split("|"), LABELS),
            split=splits.get(name),
        )


def _splits(root: Path, problems: list[Problem]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for name, split in (("train_val_list.txt", TRAIN_AND_VALIDATE), ("test_list.txt", "test")):
        if (root / name).is_file():
            splits |= dict.fromkeys(read_text(root / name).split(), split)
        else:
            problems.append(Problem(f"no {name}: patients are split anew", str(root)))
    # One list alone says nothing of the other patients.
    return splits if len(set(splits.values())) == 2 else {}
