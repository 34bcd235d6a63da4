"""Read CSV tables of reports from other systems: one row per study, with one-line errors."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, read_bounded
from medunifier.shared.files.text import decode_text

ID, REPORT, PATIENT = "study_id", "report", "patient_id"
_VALUES = {"": None, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


@dataclass(frozen=True)
class ReportTable:
    """Rows of a table by study id, in the order of the file.

    Attributes:
        reports: report of each study.
        patients: patient of each study; None if the table has no such column.
        labels: ``{finding: 1 | 0 | -1}`` of each study; None if it has no column of an observation.
    """

    reports: dict[str, str]
    patients: dict[str, str] | None
    labels: dict[str, dict[str, int]] | None


def read_reports(path: str) -> ReportTable:
    """Read ``study_id,report[,patient_id][,OBSERVATION …]``; observations are 1, 0, -1 or blank (not mentioned).

    Raises:
        UserError: if the file is missing, is no table, lacks a column, or has duplicate or empty ids.
    """
    try:
        reader = csv.DictReader(io.StringIO(decode_text(read_bounded(path, MAX_JSON_BYTES)), newline=""))
        columns = list(reader.fieldnames or [])
        missing = [name for name in (ID, REPORT) if name not in columns]
        if missing:
            raise UserError(
                f"{path} has no column {' and no column '.join(missing)}; it has: {', '.join(columns) or 'nothing'}"
            )
        rows = list(reader)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    ids = [(row[ID] or "").strip() for row in rows]
    if not rows:
        raise UserError(f"{path} has no rows")
    if "" in ids:
        raise UserError(f"{path}, row {ids.index('') + 2}: {ID} is empty")
    duplicates = [name for name, count in Counter(ids).items() if count > 1]
    if duplicates:
        raise UserError(
            f"{path} has {len(duplicates)} duplicate ids, such as {duplicates[0]}: expected one report per study"
        )
    findings = [name for name in OBSERVATIONS if name in columns]
    labels = {
        name: _labels(path, number, row, findings) for number, (name, row) in enumerate(zip(ids, rows, strict=True))
    }
    patients = (
        {name: (row[PATIENT] or name).strip() for name, row in zip(ids, rows, strict=True)}
        if PATIENT in columns
        else None
    )
    reports = {name: " ".join((row[REPORT] or "").split()) for name, row in zip(ids, rows, strict=True)}
    return ReportTable(reports, patients, labels if findings else None)


def _labels(path: str, number: int, row: dict[str, str], findings: list[str]) -> dict[str, int]:
    labels = {}
    for name in findings:
        text = (row[name] or "").strip()
        if text not in _VALUES:
            raise UserError(f"{path}, row {number + 2}: {name} is {text!r}, expected 1, 0, -1 or nothing")
        value = _VALUES[text]
        if value is not None:
            labels[name] = value
    return labels


def check_same_ids(predictions: str, predicted: set[str], references: str, expected: set[str]) -> None:
    """Check that predictions and references have the same ids, so that no study is skipped.

    Raises:
        UserError: with the number of ids that differ and one of them.
    """
    missing, unknown = expected - predicted, predicted - expected
    if missing or unknown:
        problems = []
        if missing:
            problems.append(
                f"{len(missing)} of {len(expected)} references have no prediction, such as {min(missing)}"
            )
        if unknown:
            problems.append(f"{len(unknown)} predictions have no reference, such as {min(unknown)}")
        raise UserError(
            f"{Path(predictions).name} and {Path(references).name} do not match: {'; '.join(problems)}. "
            "A report may be empty, but its row is required"
        )
