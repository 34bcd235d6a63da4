"""Study records: what a source reads from tables, headers and reports, before any pixel is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validate", "test")

TRAIN_AND_VALIDATE = "train+validate"
"""An official split that still has to be divided (NIH's ``train_val_list.txt``, VinDr's training set):
ingest samples the validation patients from it."""


Mask = Path | str
"""A grayscale PNG of the image's size in which the finding is white, or SIIM-ACR run lengths."""


@dataclass(frozen=True)
class Problem:
    """Input that a source skipped or lacked: a row without a patient, a label that is not a number."""

    reason: str
    """Written to the manifest and the table of rejects, so it must not name a patient or a patient's file."""
    where: str
    """The file, and the line if there is one. Printed on this machine only, never written."""


@dataclass(frozen=True)
class View:
    """One radiograph of a study: its path and view position ("PA", "AP", "LATERAL", …, "" if unknown)."""

    path: Path
    position: str = ""
    masks: tuple[tuple[str, Mask], ...] = ()
    """(finding, mask) pairs; a finding may have several masks."""


@dataclass(frozen=True)
class StudyRecord:
    """One study as described by a source. The ids are the source's original ids and never leave ingest."""

    study_id: str
    patient_id: str
    views: tuple[View, ...]
    report: str = ""
    """The whole report, with its section headers if it has any."""
    mimic_form: bool = False
    """Whether ``report`` is split into sections by MIMIC-CXR's rules (:mod:`data.reports.sections`), like its
    published sections; other reports are split by :mod:`data.reports.plain_sections`."""
    findings: str | None = None
    impression: str | None = None
    """Sections that the source provides separately; ``None`` = extract them from ``report``."""
    labels: Mapping[str, int] | None = None
    """1 present, 0 absent, -1 uncertain; a finding that is not a key was not mentioned. ``None`` = the source
    has no labels, and ingest extracts them from the report."""
    label_names: tuple[str, ...] = ()
    """Names of the labels that the source states for the study, in its own spelling, also those that are none of the
    14 observations. Ingest counts them (:func:`data.reports.label_names.label_counts`); they do not enter a shard."""
    taken: str = ""
    """Acquisition time as text that sorts chronologically among one patient's studies ("20310405T081500");
    "" = unknown. It only orders the studies and never leaves ingest."""
    visit: int | None = None
    """Chronological index among the patient's studies, from 0; set by ingest (:mod:`data.shards.prior_studies`)."""
    split: str | None = None
    """One of :data:`SPLITS`, or :data:`TRAIN_AND_VALIDATE`, if the source has official splits."""
