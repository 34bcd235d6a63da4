"""MIMIC-CXR 2.x: DICOM files, free-text reports and tables; also the layout of phantom archives.

Layout (PhysioNet, MIMIC-CXR 2.0.0; MIT-LCP/mimic-cxr): ``files/p10/p10000032/s50414267/<dicom_id>.dcm``
(or ``.dcm.gz``), report ``files/p10/p10000032/s50414267.txt``; tables ``cxr-record-list.csv.gz``,
``mimic-cxr-2.*-{metadata,split,chexpert}.csv.gz``. Only the record list is required.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from medunifier.data.images.views import view_position
from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.remote_paths import is_file
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.tables import (
    Row,
    find_table,
    grouped,
    label_cells,
    read_report,
    read_table,
    required_table,
    split_name,
)

MOMENT = ("StudyDate", "StudyTime")
"""Metadata columns with date and time; dates are shifted by the same interval for all studies of a patient."""

VIEW_CODE = "ViewCodeSequence_CodeMeaning"
"""Metadata column with the view where ViewPosition is blank: "postero-anterior", "left lateral"."""


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in the order of the record list.

    Raises:
        UserError: if the record list is missing or a table lacks a column.
    """
    record_list = required_table(root, "cxr-record-list", "a MIMIC-CXR tree")
    columns = ("dicom_id", "study_id", "subject_id", "path")
    rows = read_table(record_list, columns, problems, needed=columns)
    optional = (*MOMENT, VIEW_CODE)
    rows_of_images = optional_rows(root, "metadata", ("dicom_id", "ViewPosition"), problems, optional)
    metadata = {row["dicom_id"]: row for row in rows_of_images}
    positions = {dicom_id: view_of_row(row) for dicom_id, row in metadata.items()}
    labels, splits = study_labels(root, problems), study_splits(root, problems)
    for study_id, group in grouped(rows, lambda row: row["study_id"]).items():
        yield StudyRecord(
            study_id=study_id,
            patient_id=group[0]["subject_id"],
            views=tuple(View(_existing(root / row["path"]), positions.get(row["dicom_id"], "")) for row in group),
            report=read_report(_report_path(root / group[0]["path"]), root, options, problems),
            mimic_form=True,
            labels=labels.get(study_id),
            label_names=tuple(labels.get(study_id, ())),
            split=splits.get(study_id),
            taken=moment(metadata[row["dicom_id"]] for row in group if row["dicom_id"] in metadata),
        )


def view_of_row(row: Row) -> str:
    """Return the view position, or the meaning of the view code where that is blank or not a term of the field."""
    return row["ViewPosition"] if view_position(row["ViewPosition"]) else row[VIEW_CODE] or row["ViewPosition"]


def moment(images: Iterable[Row]) -> str:
    """Return the time of a study's first image as text that sorts chronologically; "" if an image has no date."""
    moments = [
        # 08:30:45.5 is written "83045.5"; fractions of a second are dropped.
        f"{image['StudyDate']}T{image['StudyTime'].partition('.')[0].zfill(6)}" if image["StudyDate"] else ""
        for image in images
    ]
    return min(moments, default="")


def optional_rows(
    root: Path, kind: str, columns: tuple[str, ...], problems: list[Problem], optional: tuple[str, ...] = ()
) -> list[Row]:
    """Return the rows of ``mimic-cxr-2.*-{kind}.csv.gz``; a missing table is recorded as a problem."""
    table = find_table(root, f"mimic-cxr-2*-{kind}")
    if table is None:
        problems.append(Problem(f"no table mimic-cxr-2.*-{kind}.csv.gz", str(root)))
        return []
    return read_table(table, columns, problems, needed=columns[:1], optional=optional)


def study_labels(root: Path, problems: list[Problem]) -> dict[str, dict[str, int]]:
    """Return {study id: labels} from CheXpert's labeler; ingest labels other studies from their reports."""
    rows = optional_rows(root, "chexpert", ("study_id", *OBSERVATIONS), problems)
    return {row["study_id"]: label_cells(row, problems) for row in rows}


def study_splits(root: Path, problems: list[Problem]) -> dict[str, str | None]:
    """Return {study id: official split}."""
    rows = optional_rows(root, "split", ("study_id", "split"), problems)
    return {row["study_id"]: split_name(row["split"], row.where) for row in rows}


def _report_path(image: Path) -> Path:
    """Return the report beside the study's folder."""
    return image.parent.parent / f"{image.parent.name}.txt"


def _existing(path: Path) -> Path:
    """Return the existing file: version 2.0.0 has gzipped files, whose names differ from the record list."""
    packed = path.with_name(path.name + ".gz")
    return packed if not is_file(path) and is_file(packed) else path
