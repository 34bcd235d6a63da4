"""MIMIC-CXR 2.x: DICOM files, free-text reports and the tables beside them; also what the phantom writes.

Layout (PhysioNet, MIMIC-CXR 2.0.0; MIT-LCP/mimic-cxr): ``files/p10/p10000032/s50414267/<dicom_id>.dcm``
(or ``.dcm.gz``), report ``files/p10/p10000032/s50414267.txt``; tables ``cxr-record-list.csv.gz``,
``mimic-cxr-2.*-{metadata,split,chexpert}.csv.gz``. Only the record list is indispensable.
"""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data.observations import OBSERVATIONS
from data.records import StudyRecord, View
from data.sources import SourceOptions
from shared.errors import UserError


def records(root: Path, options: SourceOptions) -> Iterator[StudyRecord]:
    """Studies in the order of the record list.

    Raises:
        UserError: if the record list is absent or lacks a column.
    """
    record_list = _table(root, "cxr-record-list")
    if record_list is None:
        raise UserError(f"{root} has no cxr-record-list.csv.gz: it is not the top folder of a MIMIC-CXR tree")
    positions = {
        row["dicom_id"]: row.get("ViewPosition") or "" for row in _table(root, "mimic-cxr-2*-metadata") or []
    }
    splits = {row["study_id"]: row["split"] for row in _table(root, "mimic-cxr-2*-split") or []}
    label_table = _table(root, "mimic-cxr-2*-chexpert")
    labels = None if label_table is None else {row["study_id"]: _labels(row) for row in label_table}
    studies: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in record_list:
        missing = {"dicom_id", "study_id", "subject_id", "path"} - row.keys()
        if missing:
            raise UserError(f"{root}/cxr-record-list.csv.gz lacks the column {', '.join(sorted(missing))}")
        studies[row["study_id"]].append(row)
    for study_id, rows in studies.items():
        report = (root / rows[0]["path"]).parent.with_suffix(".txt")
        yield StudyRecord(
            study_id=study_id,
            patient_id=rows[0]["subject_id"],
            views=tuple(View(_existing(root / row["path"]), positions.get(row["dicom_id"], "")) for row in rows),
            report=report.read_text(encoding="utf-8", errors="replace") if report.is_file() else "",
            labels=None if labels is None else labels.get(study_id),
            split=splits.get(study_id),
        )


def _existing(path: Path) -> Path:
    """The 2.0.0 files were shipped gzipped, under names that the record list does not have."""
    packed = path.with_name(path.name + ".gz")
    return packed if not path.exists() and packed.exists() else path


def _labels(row: dict[str, str]) -> dict[str, int]:
    return {name: int(float(row[name])) for name in OBSERVATIONS if row.get(name) not in (None, "")}


def _table(root: Path, pattern: str) -> list[dict[str, str]] | None:
    """Rows of the one table that matches (the version stands in its name), packed or not; None if absent."""
    found = sorted(root.glob(f"{pattern}.csv.gz")) + sorted(root.glob(f"{pattern}.csv"))
    if not found:
        return None
    opener = gzip.open if found[-1].suffix == ".gz" else open
    try:
        with opener(found[-1], "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{found[-1]} cannot be read: {error}") from None
