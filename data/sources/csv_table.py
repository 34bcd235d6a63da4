"""A table with a row an image: paths, patients, and whatever of sections, labels and splits there is."""

import csv
from collections.abc import Iterator
from pathlib import Path

from data.label_names import observation
from data.records import SPLITS, StudyRecord, View
from data.sources import SourceOptions
from shared.errors import UserError

_SPLIT_NAMES = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate", "test": "test"}


def records(root: Path, options: SourceOptions) -> Iterator[StudyRecord]:
    """Rows of one study gathered, in the order of their first row.

    A row without a study is a study of its own; one without a patient belongs to a patient of its own study.

    Raises:
        UserError: if the table is absent or ambiguous, lacks the image column, or has an unknown split.
    """
    table = _find_table(root, options.table)
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {error}") from None
    if rows and options.image not in rows[0]:
        raise UserError(
            f"{table} has no column {options.image!r}; it has {', '.join(rows[0])}. "
            "Name the one with the images: --options.image COLUMN"
        )
    studies: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        study = row.get(options.study) or row[options.image]
        patient = row.get(options.patient) or f"study {study}"
        studies.setdefault((patient, study), []).append(row)
    for (patient, study), group in studies.items():
        first = group[0]
        findings, impression = first.get(options.findings) or "", first.get(options.impression) or ""
        sectioned = bool(findings or impression)
        yield StudyRecord(
            # Study names may repeat from patient to patient ("scan 1").
            study_id=f"{patient}/{study}",
            patient_id=patient,
            views=tuple(View(table.parent / row[options.image], row.get(options.view) or "") for row in group),
            report=first.get(options.report) or "",
            findings=findings if sectioned else None,
            impression=impression if sectioned else None,
            labels=_labels(group, options.labels),
            split=_split(first.get(options.split) or "", table),
        )


def _find_table(root: Path, name: str) -> Path:
    if name:
        if not (root / name).is_file():
            raise UserError(f"table {root / name} not found")
        return root / name
    if (root / "manifest.csv").is_file():
        return root / "manifest.csv"
    tables = sorted(root.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise UserError(
            f"expected manifest.csv or one .csv under {root}, found {found}: name it with --options.table"
        )
    return tables[0]


def _labels(group: list[dict[str, str]], column: str) -> dict[str, int] | None:
    """Positive findings of any view; None where the column names nothing that the fourteen observations have."""
    names = (name for row in group for name in (row.get(column) or "").split("|"))
    known = {found: 1 for name in names if (found := observation(name)) is not None}
    return known or None


def _split(name: str, table: Path) -> str | None:
    if not name:
        return None
    if name.strip().lower() not in _SPLIT_NAMES:
        raise UserError(f"{table}: unknown split {name!r}; use {', '.join(SPLITS)} or leave it empty")
    return _SPLIT_NAMES[name.strip().lower()]
