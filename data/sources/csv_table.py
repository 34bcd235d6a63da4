"""A table with one row per image: path, patient, and optionally sections, labels and splits."""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.reports.label_names import positive_labels
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import Row, grouped, read_table, split_name
from medunifier.shared.errors import UserError


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in the order of their first row.

    A row without a study id is a separate study; a study without a patient id is a separate patient.

    Raises:
        UserError: if the table is missing or ambiguous, lacks the image column, or has an unknown split.
    """
    table = _find_table(root, options.table)
    rows = read_table(
        table,
        [options.image],
        problems,
        needed=[options.image],
        optional=[
            options.patient, options.study, options.view, options.findings, options.impression, options.report,
            options.labels, options.split, options.date,
        ],
        hint="specify the column with the image paths: --options.image COLUMN",
    )  # fmt: skip

    def patient_and_study(row: Row) -> tuple[str, str]:
        study = row[options.study] or row[options.image]
        return row[options.patient] or f"study {study}", study

    for (patient, study), group in grouped(rows, patient_and_study).items():
        first = group[0]
        names = tuple(name for row in group for name in row[options.labels].split("|"))
        sectioned = bool(first[options.findings] or first[options.impression])
        yield StudyRecord(
            # Study ids may repeat between patients ("scan 1").
            study_id=f"{patient}/{study}",
            patient_id=patient,
            views=tuple(View(table.parent / row[options.image], row[options.view]) for row in group),
            report=first[options.report],
            findings=first[options.findings] if sectioned else None,
            impression=first[options.impression] if sectioned else None,
            # None if no name is one of the 14 observations: the labels are then extracted from the report.
            labels=positive_labels(names) or None,
            label_names=names,
            split=split_name(first[options.split], first.where),
            taken=first[options.date],
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
            f"expected manifest.csv or one .csv under {root}, found {found}: specify it with --options.table"
        )
    return tables[0]
