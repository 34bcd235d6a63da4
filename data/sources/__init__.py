"""Sources: one small adapter per data set, each yielding the same study records.

To add one: write ``data/sources/NAME.py`` with a function ``records(root, options, problems)`` that yields
:class:`StudyRecord` from tables and file names only (no pixels), and register it in :data:`SOURCES`.
The root may be remote (:mod:`data.remote_paths`): read files only with :mod:`data.sources.tables`
and :mod:`data.remote_paths`, which bound what they read. Image paths are checked here, after the adapter.
An unusable row is appended to ``problems``; if the whole tree is unusable, raise a ``UserError``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from medunifier.data.files.walk import OUTSIDE_ROOT
from medunifier.data.records import Problem, StudyRecord
from medunifier.data.remote_paths import lies_under, open_root
from medunifier.shared.errors import UsageError, UserError, nearest
from medunifier.shared.files.text import intact, without_marks


@dataclass(frozen=True)
class SourceOptions:
    """Options of individual sources."""

    table: str = ""
    """csv: file name of the table under the root; by default manifest.csv, or the only .csv file."""
    image: str = "image"
    """csv: column with the image path, relative to the table."""
    patient: str = "patient_id"
    """csv: column with the patient id."""
    study: str = "study_id"
    """csv: column with the study id."""
    view: str = "view"
    """csv: column with the view position."""
    findings: str = "findings"
    """csv: column with the findings section."""
    impression: str = "impression"
    """csv: column with the impression section."""
    report: str = "text"
    """csv: column with the whole report, used if both sections are empty."""
    labels: str = "labels"
    """csv: column with the positive findings, separated by a vertical bar."""
    split: str = "split"
    """csv: column with the official split, if there is one."""
    date: str = "date"
    """csv: column with the study date, as text that sorts chronologically: 2031-04-05, 2031-04-05 08:15."""
    reports_root: str = ""
    """mimic-cxr-jpg: top folder of a MIMIC-CXR tree with the reports, which MIMIC-CXR-JPG does not include."""
    outside_root: bool = False
    """Any source: also read images and reports that tables or links place outside the root of the archive."""
    official_splits: bool = True
    """Any source: keep the data set's official splits; false = ignore them and split all patients at random."""


class Source(Protocol):
    """The signature of a source adapter."""

    def __call__(self, root: Path, options: SourceOptions, problems: list[Problem]) -> Iterable[StudyRecord]: ...


@dataclass(frozen=True)
class Archive:
    """The studies and problems of a source."""

    records: list[StudyRecord]
    """All studies, in the order of the source."""
    problems: list[Problem]
    """Skipped rows and missing tables."""


SOURCES: dict[str, str] = {
    "phantom": "medunifier.data.sources.mimic_cxr",  # the phantom is written in MIMIC-CXR's layout
    "mimic-cxr": "medunifier.data.sources.mimic_cxr",
    "mimic-cxr-jpg": "medunifier.data.sources.mimic_cxr_jpg",
    "chexpert": "medunifier.data.sources.chexpert",
    "chexpert-plus": "medunifier.data.sources.chexpert_plus",
    "openi": "medunifier.data.sources.openi",
    "r2gen": "medunifier.data.sources.r2gen",
    "padchest": "medunifier.data.sources.padchest",
    "vindr": "medunifier.data.sources.vindr",
    "rsna": "medunifier.data.sources.rsna",
    "siim": "medunifier.data.sources.siim",
    "nih": "medunifier.data.sources.nih",
    "covidx": "medunifier.data.sources.covidx",
    "csv": "medunifier.data.sources.csv_table",
    "dicom-folder": "medunifier.data.sources.dicom_folder",
}
WITHOUT_TABLES = {"dicom-folder"}
"""Sources whose problems are files, not rows."""


def read_source(
    name: str, root: str | Path, options: SourceOptions, problems: list[Problem] | None = None
) -> Archive:
    """Return all studies of an archive, and what its tables lack or was left out, also added to ``problems``.

    Raises:
        UsageError: if the name is not in :data:`SOURCES`.
        UserError: if the folder is missing, has another layout, or contains no study.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown source {name!r}; choose from {', '.join(sorted(SOURCES))}{nearest(name, SOURCES)}")
    root = open_root(root)
    adapter = cast(Source, import_module(SOURCES[name]).records)
    problems = [] if problems is None else problems
    checked = (_checked(record, root, options, problems) for record in adapter(root, options, problems))
    found = [record for record in checked if record is not None]
    if not found:
        what = "files" if name in WITHOUT_TABLES else "rows"
        left_out = f"; {len(problems)} {what} were skipped, the first: {problems[0].reason}" if problems else ""
        raise UserError(f"no radiograph found under {root} in the layout of source {name!r}{left_out}")
    if not options.official_splits:
        found = [replace(record, split=None) for record in found]
    return Archive(found, problems)


def _checked(record: StudyRecord, root: Path, options: SourceOptions, problems: list[Problem]) -> StudyRecord | None:
    """The study without images outside the root; None if none is left, or its text cannot be written as JSON."""
    where = str(record.views[0].path) if record.views else record.study_id
    texts = {"report": record.report, "findings": record.findings, "impression": record.impression}
    if not all(intact(text or "") for text in texts.values()):  # of XML and JSON, whose escapes spell any character
        problems.append(Problem("report with a NUL, a lone surrogate or U+FFFD: save it as UTF-8", where))
        return None
    if any("\ufeff" in (text or "") for text in texts.values()):
        record = replace(
            record,
            report=without_marks(record.report),
            findings=record.findings and without_marks(record.findings),
            impression=record.impression and without_marks(record.impression),
        )
    if options.outside_root:
        return record
    views = tuple(view for view in record.views if lies_under(view.path, root))
    if len(views) == len(record.views):
        return record
    problems += [Problem(f"image {OUTSIDE_ROOT}", str(v.path)) for v in record.views if v not in views]
    return replace(record, views=views) if views else None
