"""Phantom studies as files: real DICOM and reports in the layout of MIMIC-CXR 2.0.0, with its tables.

files/p10/p10000032/s50414267/<dicom_id>.dcm, files/p10/p10000032/s50414267.txt, and beside them
mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz, cxr-record-list.csv.gz, cxr-study-list.csv.gz. The
chexpert table carries the true labels of the reports: 1, 0, -1 or blank.
"""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy import ndarray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from data.observations import OBSERVATIONS
from data.phantom.state import ROUND
from data.phantom.study import Phantom, PhantomStudy
from shared.artifacts import atomic_file

_KEY_HEADER = 20
_FIRST_DAY = date(2150, 1, 1)

METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
_VIEW_MEANING = {"PA": "postero-anterior", "AP": "antero-posterior"}
_PROCEDURE = {"PA": "CHEST (PA)", "AP": "CHEST (PORTABLE AP)"}


@dataclass(frozen=True)
class StudyRow:
    """What the tables say of a study; all that is kept of it once its files are written."""

    patient_id: str
    study_id: str
    split: str
    views: tuple[str, ...]
    dicom_ids: tuple[str, ...]
    labels: dict[str, int]
    date: str
    time: str
    size: int

    @property
    def folder(self) -> str:
        """The study's folder, relative to the archive's root, in the spelling of MIMIC's tables."""
        return f"files/p{self.patient_id[:2]}/p{self.patient_id}/s{self.study_id}"


def write_study(phantom: Phantom, index: int, root: Path) -> StudyRow:
    """Writes a study's DICOM files, then its report; what exists already is left as it is.

    Every file appears by rename and is a pure function of the phantom and the index, so an interrupted
    run is taken up where it stopped.
    """
    study = phantom.study(index)
    row = _row(phantom, index, study)
    folder = root / row.folder
    for number, dicom_id in enumerate(study.dicom_ids):
        path = folder / f"{dicom_id}.dcm"
        if not path.exists():
            dataset = dicom_dataset(phantom, index, study, row, number)
            with atomic_file(path) as partial:
                dataset.save_as(partial, enforce_file_format=True)
    report = folder.with_suffix(".txt")
    if not report.exists():
        with atomic_file(report) as partial:
            partial.write_text(study.report, encoding="utf-8")
    return row


def _row(phantom: Phantom, index: int, study: PhantomStudy) -> StudyRow:
    rng = np.random.default_rng((phantom.seed, _KEY_HEADER, index))
    # Dates lie in the far future, as MIMIC's shifted ones do; a patient's visits are some weeks apart.
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
        size=phantom.size,
    )


def dicom_dataset(phantom: Phantom, index: int, study: PhantomStudy, row: StudyRow, number: int) -> Dataset:
    """One view as a DICOM data set, its header drawn from the spread met in real archives.

    Of 7,469 chest films of Open-I nearly half are MONOCHROME1, bits stored are 12, 15, 10 and 14, and
    rescale, window and PresentationLUTShape are often missing. Whatever the spelling, reading the file
    gives the picture back to within its quantisation.
    """
    rng = np.random.default_rng((phantom.seed, _KEY_HEADER, index, number))
    bits = int(rng.choice((12, 15, 10, 14), p=(0.76, 0.20, 0.02, 0.02)))
    inverse = rng.random() < 0.48
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if rng.random() < 0.7 else ImplicitVRLittleEndian
    digital = study.views[number] == "PA" and rng.random() < 0.3
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation if digital else ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[row.dicom_ids[number]])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", row.study_id])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", row.dicom_ids[number]])
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = "Synthetic: drawn by a procedural phantom, not a patient"
    dataset.Modality = "DX" if digital else "CR"
    dataset.StudyDate, dataset.StudyTime = row.date, row.time
    dataset.PatientID, dataset.PatientName = row.patient_id, ""
    dataset.StudyID = row.study_id
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
    dataset.BodyPartExamined = "CHEST" if rng.random() < 0.7 else ""
    dataset.ViewPosition = row.views[number] if rng.random() < 0.8 else ""
    _set_pixels(dataset, study.images[number], bits, inverse)
    if rng.random() < 0.5:
        dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    if rng.random() < 0.6:
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    if rng.random() < 0.55:
        dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    return dataset


def _set_pixels(dataset: Dataset, image: ndarray, bits: int, inverse: bool) -> None:
    top = 2**bits - 1
    stored = np.rint(image * top).astype("<u2")
    if inverse:
        stored = (top - stored).astype("<u2")
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.tobytes()


def write_tables(rows: list[StudyRow], root: Path) -> None:
    """Writes the five tables of MIMIC-CXR over the studies given, in the order of their ids."""
    rows = sorted(rows, key=lambda row: (row.patient_id, row.study_id))
    labelled = sorted(OBSERVATIONS)  # MIMIC's order of columns
    _write_table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ("subject_id", "study_id", *labelled),
        ((r.patient_id, r.study_id, *(_mark(r.labels.get(name)) for name in labelled)) for r in rows),
    )
    _write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ("dicom_id", "study_id", "subject_id", "split"),
        ((dicom_id, r.study_id, r.patient_id, r.split) for r, _, dicom_id in _views(rows)),
    )
    _write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        METADATA_COLUMNS,
        (
            (
                dicom_id, r.patient_id, r.study_id, _PROCEDURE[view], view, r.size, r.size, r.date, r.time,
                _PROCEDURE[view], _VIEW_MEANING[view], "Erect" if view == "PA" else "Recumbent",
            )
            for r, view, dicom_id in _views(rows)
        ),
    )  # fmt: skip
    _write_table(
        root / "cxr-record-list.csv.gz",
        ("subject_id", "study_id", "dicom_id", "path"),
        ((r.patient_id, r.study_id, dicom_id, f"{r.folder}/{dicom_id}.dcm") for r, _, dicom_id in _views(rows)),
    )
    _write_table(
        root / "cxr-study-list.csv.gz",
        ("subject_id", "study_id", "path"),
        ((r.patient_id, r.study_id, f"{r.folder}.txt") for r in rows),
    )


def _views(rows: list[StudyRow]) -> Iterator[tuple[StudyRow, str, str]]:
    for row in rows:
        for view, dicom_id in zip(row.views, row.dicom_ids, strict=True):
            yield row, view, dicom_id


def _mark(label: int | None) -> str:
    return "" if label is None else f"{label:.1f}"  # as MIMIC's file has it: "1.0"


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    with atomic_file(path) as partial:
        # No time stamp inside: the same studies give the same bytes.
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
