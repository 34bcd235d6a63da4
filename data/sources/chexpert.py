"""CheXpert 1.0 (also the small version): tables with one row per image and study-level labels; no reports.

Layout (Stanford): ``train.csv``, ``valid.csv`` with Path (``CheXpert-v1.0-small/train/patient00001/study1/
view1_frontal.jpg``), Frontal/Lateral, AP/PA and the fourteen observations: 1, 0, -1 (uncertain), blank (not
mentioned). Test: ``groundtruth.csv`` (rajpurkarlab/cheXpert-test-set-labels) with one row per study, column Study.
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import find_table, grouped, label_cells, read_table, required_table


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies of train and validate, and of test if its table and images exist.

    Raises:
        UserError: if ``train.csv`` is missing or a table lacks a column.
    """
    tables = {"train": required_table(root, "train", "CheXpert"), "validate": find_table(root, "valid")}
    for split, table in tables.items():
        if table is None:
            problems.append(Problem("no table valid.csv", str(root)))
            continue
        rows = read_table(table, ("Path", "Frontal/Lateral", "AP/PA", *OBSERVATIONS), problems, needed=["Path"])
        for folder, group in grouped(rows, lambda row: study_folder(row["Path"])).items():
            views = tuple(
                View(root / folder / Path(row["Path"]).name, view_position(row["Frontal/Lateral"], row["AP/PA"]))
                for row in group
            )
            labels = label_cells(group[0], problems)
            yield StudyRecord(
                str(folder), folder.parent.name, views, labels=labels, label_names=tuple(labels), split=split
            )
    yield from _test_studies(root, problems)


def study_folder(path: str) -> Path:
    """Return the study folder: ``…/train/patient00001/study1/view1_frontal.jpg`` -> ``train/patient00001/study1``.

    The prefix differs between tables, and seldom is the name of the local folder.
    """
    return Path(*Path(path).parts[-4:-1])


def view_position(side: str, direction: str) -> str:
    """Convert CheXpert's two view columns to a view position: AP or PA for frontal images, else LATERAL."""
    return "LATERAL" if side.lower() == "lateral" else direction


def _test_studies(root: Path, problems: list[Problem]) -> Iterator[StudyRecord]:
    table = find_table(root, "groundtruth")
    if table is None:
        return
    for row in read_table(table, ("Study", *OBSERVATIONS), problems, needed=["Study"]):
        folder = Path(*Path(row["Study"]).parts[-3:])
        views = tuple(View(path, "LATERAL" if "lateral" in path.name else "") for path in _pictures(root / folder))
        if views:
            labels = label_cells(row, problems)
            yield StudyRecord(
                str(folder), folder.parent.name, views, labels=labels, label_names=tuple(labels), split="test"
            )
        else:
            problems.append(Problem("study without an image", row.where))


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.jpg"))
    except OSError:  # a name longer than the file system allows, or a folder that may not be searched
        return []
