"""Sources: one small adapter a data set, each yielding the same study records.

To add one: write ``data/sources/NAME.py`` with a function ``records(root, options) -> Iterable[StudyRecord]``
that reads tables and names alone (no pixels), and give it a line in :data:`SOURCES`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from data.records import StudyRecord
from shared.errors import UsageError, UserError


@dataclass(frozen=True)
class SourceOptions:
    """What some sources need to know beside the folder."""

    table: str = ""
    """csv: the table's name under the root; by default manifest.csv, or the only .csv there."""
    image: str = "image"
    """csv: column with the image's path, relative to the table."""
    patient: str = "patient_id"
    """csv: column with the patient."""
    study: str = "study_id"
    """csv: column with the study."""
    view: str = "view"
    """csv: column with the view position."""
    findings: str = "findings"
    """csv: column with the findings section."""
    impression: str = "impression"
    """csv: column with the impression section."""
    report: str = "text"
    """csv: column with the whole report, read where the two sections are empty."""
    labels: str = "labels"
    """csv: column with the positive findings, separated by a vertical bar."""
    split: str = "split"
    """csv: column with the official split, if there is one."""


class Source(Protocol):
    """An adapter."""

    def __call__(self, root: Path, options: SourceOptions) -> Iterable[StudyRecord]: ...


SOURCES: dict[str, str] = {
    "phantom": "data.sources.mimic_cxr",  # the phantom is written in MIMIC-CXR's layout
    "mimic-cxr": "data.sources.mimic_cxr",
    "csv": "data.sources.csv_table",
    "dicom-folder": "data.sources.dicom_folder",
}


def read_source(name: str, root: str | Path, options: SourceOptions) -> list[StudyRecord]:
    """Every study of an archive, in the source's order.

    Raises:
        UsageError: for a name that is not in :data:`SOURCES`.
        UserError: if the folder is absent, is not of this layout, or holds no study.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown source {name!r}; there are: {', '.join(sorted(SOURCES))}")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"source folder {root} not found")
    adapter = cast(Source, import_module(SOURCES[name]).records)
    found = list(adapter(root, options))
    if not found:
        raise UserError(f"no radiograph found under {root} in the layout of source {name!r}")
    return found
