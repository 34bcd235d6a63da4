"""Write phantom studies as DICOM files and reports in the layout of MIMIC-CXR 2.0.0, with its tables.

files/p10/p10000032/s50414267/<dicom_id>.dcm, files/p10/p10000032/s50414267.txt, and at the top level
mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz, cxr-record-list.csv.gz, cxr-study-list.csv.gz. The
chexpert table holds the true labels of the reports: 1, 0, -1 or blank.
"""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from medunifier.data.images.masks import mask_name
from medunifier.data.phantom.header import Headers, ImageHeader, dicom_file_bytes
from medunifier.data.phantom.state import ROUND
from medunifier.data.phantom.study import Phantom, PhantomStudy
from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.shards.dataset import encode_png
from medunifier.shared.artifacts import atomic_file

MASKS = "masks"
"""Folder of the archive that `medunifier ingest --masks` reads."""

_KEY_HEADER = 20
_FIRST_DAY = date(2150, 1, 1)

METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
_VIEW_MEANING = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}
_PROCEDURE = {("PA",): "CHEST (PA)", ("AP",): "CHEST (PORTABLE AP)", ("PA", "LATERAL"): "CHEST (PA AND LAT)"}


@dataclass(frozen=True)
class StudyRow:
    """Table entries of a study, kept after its files are written."""

    patient_id: str
    study_id: str
    split: str
    views: tuple[str, ...]
    dicom_ids: tuple[str, ...]
    labels: dict[str, int]
    date: str
    time: str
    shapes: tuple[tuple[int, int], ...]
    """Rows and columns of each view."""

    @property
    def folder(self) -> str:
        """Folder of the study relative to the archive's root, as written in MIMIC's tables."""
        return f"files/p{self.patient_id[:2]}/p{self.patient_id}/s{self.study_id}"


def study_files(
    phantom: Phantom, index: int, headers: Headers = "basic", masks: bool = False
) -> tuple[StudyRow, dict[str, bytes]]:
    """Return a study's table row, and {path below the archive's root: content} for its images, report and masks.

    A pure function: a file that exists already equals the one that would be written.
    """
    study = phantom.study(index)
    row = _row(phantom, index, study)
    files: dict[str, bytes] = {}
    shapes = []
    for number, (view, dicom_id, image) in enumerate(zip(row.views, row.dicom_ids, study.images, strict=True)):
        header = ImageHeader(view, row.patient_id, row.study_id, dicom_id, number, row.date, row.time)
        rng = np.random.default_rng((phantom.seed, _KEY_HEADER, index, number))
        files[f"{row.folder}/{dicom_id}.dcm"], shape = dicom_file_bytes(header, image, headers, rng)
        shapes.append(shape)
    files[f"{row.folder}.txt"] = study.report.encode()
    if masks:
        for finding, mask in phantom.masks(index).items():
            name = mask_name(f"{row.dicom_ids[0]}.dcm", finding)
            files[f"{MASKS}/{name}"] = encode_png(mask.astype(np.uint8) * np.uint8(255))
    return replace(row, shapes=tuple(shapes)), files


def write_missing(files: Mapping[str, bytes], root: Path) -> None:
    """Write the files that do not exist yet, each atomically by rename."""
    for name, content in files.items():
        path = root / name
        if not path.exists():
            with atomic_file(path) as partial:
                partial.write_bytes(content)


def _row(phantom: Phantom, index: int, study: PhantomStudy) -> StudyRow:
    rng = np.random.default_rng((phantom.seed, _KEY_HEADER, index))
    # Dates are in the far future, like MIMIC's shifted dates; a patient's studies are some weeks apart.
    day = _FIRST_DAY + timedelta(days=17 * (index % ROUND) + int(rng.integers(11)))
    return StudyRow(
        patient_id=study.patient_id,
        study_id=study.study_id,
        split=study.split,
        views=tuple(study.views),
        dicom_ids=tuple(study.dicom_ids),
        labels=study.labels,
        date=day.strftime("%Y%m%d"),
        time=f"{int(rng.integers(24)):02d}{int(rng.integers(60)):02d}{int(rng.integers(60)):02d}",
        shapes=(),
    )


def write_tables(rows: list[StudyRow], root: Path) -> None:
    """Write the five tables of MIMIC-CXR for the studies, ordered by patient and study id."""
    rows = sorted(rows, key=lambda row: (row.patient_id, row.study_id))
    observations = sorted(OBSERVATIONS)  # MIMIC's column order
    _write_table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ("subject_id", "study_id", *observations),
        ((r.patient_id, r.study_id, *(_mark(r.labels.get(name)) for name in observations)) for r in rows),
    )
    _write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ("dicom_id", "study_id", "subject_id", "split"),
        ((dicom_id, r.study_id, r.patient_id, r.split) for r, _, dicom_id, _ in _views(rows)),
    )
    _write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        METADATA_COLUMNS,
        (
            (
                dicom_id, r.patient_id, r.study_id, _PROCEDURE[r.views], view, *shape, r.date, r.time,
                _PROCEDURE[r.views], _VIEW_MEANING[view], "Recumbent" if view == "AP" else "Erect",
            )
            for r, view, dicom_id, shape in _views(rows)
        ),
    )  # fmt: skip
    _write_table(
        root / "cxr-record-list.csv.gz",
        ("subject_id", "study_id", "dicom_id", "path"),
        ((r.patient_id, r.study_id, dicom_id, f"{r.folder}/{dicom_id}.dcm") for r, _, dicom_id, _ in _views(rows)),
    )
    _write_table(
        root / "cxr-study-list.csv.gz",
        ("subject_id", "study_id", "path"),
        ((r.patient_id, r.study_id, f"{r.folder}.txt") for r in rows),
    )


def _views(rows: list[StudyRow]) -> Iterator[tuple[StudyRow, str, str, tuple[int, int]]]:
    for row in rows:
        for view, dicom_id, shape in zip(row.views, row.dicom_ids, row.shapes, strict=True):
            yield row, view, dicom_id, shape


def _mark(label: int | None) -> str:
    return "" if label is None else f"{label:.1f}"  # as in MIMIC's file: "1.0"


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    with atomic_file(path) as partial:
        # Without a time stamp the same studies give the same bytes.
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
