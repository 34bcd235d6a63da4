"""What a source tells of a study, before any pixel is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validate", "test")

TRAIN_AND_VALIDATE = "train+validate"
"""An official split that its makers leave to be divided (NIH's ``train_val_list.txt``, VinDr's training set):
ingest draws the validation patients from it."""


Mask = Path | str
"""A grey PNG of its film's own size in which the finding is white, or run lengths as SIIM-ACR writes them."""


@dataclass(frozen=True)
class Problem:
    """What a source left out, or did without: a row without a patient, a label that is no number."""

    reason: str
    """Goes into the manifest and the table of rejects, so it names no patient and no file of one."""
    where: str
    """The file, and the line if there is one. Shown on this machine, never written."""


@dataclass(frozen=True)
class View:
    """One radiograph of a study: where it lies and how it was taken ("PA", "AP", "LATERAL", …, "" if unknown)."""

    path: Path
    position: str = ""
    masks: tuple[tuple[str, Mask], ...] = ()
    """(finding, where it lies), several of one finding where the source has several."""


@dataclass(frozen=True)
class StudyRecord:
    """One study as a source describes it; the ids are the source's own and never leave ingest."""

    study_id: str
    patient_id: str
    views: tuple[View, ...]
    report: str = ""
    """The whole report, with its section headers if it has any."""
    mimic_form: bool = False
    """Whether ``report`` is cut into sections by MIMIC-CXR's rules (:mod:`data.sections`), as its published sections
    were; other reports are cut by :mod:`data.plain_sections`."""
    findings: str | None = None
    impression: str | None = None
    """Sections that the source keeps apart; ``None`` = cut them from ``report``."""
    labels: Mapping[str, int] | None = None
    """1 present, 0 absent, -1 uncertain; a finding that is not a key was not mentioned. ``None`` = the source
    has no labels, and they are read from the report."""
    taken: str = ""
    """When, as text that sorts by time among one patient's studies ("20310405T081500"); "" = unknown. It says which
    study came before which and never leaves ingest."""
    visit: int | None = None
    """Place among the patient's studies in the order of time, from 0; ingest counts it (:mod:`data.visits`)."""
    split: str | None = None
    """One of :data:`SPLITS`, or :data:`TRAIN_AND_VALIDATE`, where the source has an official one."""
