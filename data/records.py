"""What a source tells of a study, before any pixel is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "validate", "test")


@dataclass(frozen=True)
class View:
    """One radiograph of a study: where it lies and how it was taken ("PA", "AP", "LATERAL", …, "" if unknown)."""

    path: Path
    position: str = ""


@dataclass(frozen=True)
class StudyRecord:
    """One study as a source describes it; the ids are the source's own and never leave ingest."""

    study_id: str
    patient_id: str
    views: tuple[View, ...]
    report: str = ""
    """The whole report, with its section headers if it has any."""
    findings: str | None = None
    impression: str | None = None
    """Sections that the source keeps apart; ``None`` = cut them from ``report``."""
    labels: Mapping[str, int] | None = None
    """1 present, 0 absent, -1 uncertain; a finding that is not a key was not mentioned. ``None`` = the source
    has no labels, and they are read from the report."""
    split: str | None = None
    """One of :data:`SPLITS` where the source has an official one."""
    extra: Mapping[str, str] = field(default_factory=dict)
