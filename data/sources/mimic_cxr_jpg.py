"""MIMIC-CXR-JPG 2.x: JPEG files and tables; the reports, which it does not include, from a MIMIC-CXR tree.

Layout (PhysioNet): ``files/p10/p10000032/s50414267/<dicom_id>.jpg``, ``mimic-cxr-2.*-metadata.csv.gz``
(required), ``-split`` and ``-chexpert``. Reports: ``mimic-cxr-reports.zip`` of MIMIC-CXR, unpacked:
``files/p10/p10000032/s50414267.txt`` under ``--options.reports_root`` (by default the same root).
"""

from collections.abc import Iterator
from pathlib import Path

from medunifier.data.records import Problem, StudyRecord, View
from medunifier.data.remote_paths import as_path
from medunifier.data.sources import SourceOptions
from medunifier.data.sources.mimic_cxr import MOMENT, VIEW_CODE, moment, study_labels, study_splits, view_of_row
from medunifier.data.sources.tables import grouped, read_report, read_table, required_table
from medunifier.shared.errors import UserError


def records(root: Path, options: SourceOptions, problems: list[Problem]) -> Iterator[StudyRecord]:
    """Yield the studies in the order of the metadata.

    Raises:
        UserError: if the metadata or the report folder is missing, or a table lacks a column.
    """
    reports = as_path(options.reports_root or root)
    if options.reports_root and not (reports / "files").is_dir():
        raise UserError(f"reports_root {reports} has no folder 'files': unpack mimic-cxr-reports.zip there")
    metadata = required_table(root, "mimic-cxr-2*-metadata", "MIMIC-CXR-JPG")
    ids = ("dicom_id", "subject_id", "study_id")
    rows = read_table(metadata, (*ids, "ViewPosition"), problems, needed=ids, optional=(*MOMENT, VIEW_CODE))
    labels, splits = study_labels(root, problems), study_splits(root, problems)
    for study_id, group in grouped(rows, lambda row: row["study_id"]).items():
        patient = group[0]["subject_id"]
        study = Path("files", f"p{patient[:2]}", f"p{patient}", f"s{study_id}")
        yield StudyRecord(
            study_id=study_id,
            patient_id=patient,
            views=tuple(View(root / study / f"{row['dicom_id']}.jpg", view_of_row(row)) for row in group),
            report=read_report(reports / study.with_name(f"{study.name}.txt"), reports, options, problems),
            mimic_form=True,
            labels=labels.get(study_id),
            label_names=tuple(labels.get(study_id, ())),
            split=splits.get(study_id),
            taken=moment(group),
        )
