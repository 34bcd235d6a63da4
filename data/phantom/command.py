"""`medunifier phantom`: write an archive of synthetic chest radiographs with reports."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medunifier.data.ingest.executors import open_executor, run_jobs
from medunifier.data.phantom.header import Headers
from medunifier.data.phantom.state import FINDINGS
from medunifier.data.phantom.study import MOST_STUDIES, SMALLEST_SIZE, Phantom
from medunifier.data.phantom.write import StudyRow, study_files, write_missing, write_tables
from medunifier.shared.artifacts import read_json, remove_partial, write_json
from medunifier.shared.command import can_continue
from medunifier.shared.config import parse_config
from medunifier.shared.files.settings_record import refuse_occupied, refuse_other_settings
from medunifier.shared.progress import Progress

MANIFEST = "phantom.json"
_VERSION = 1
_OMITTED_AT_DEFAULT = ("lateral_fraction", "history", "headers", "masks")
_STUDIES_PER_JOB = 25
_WRITERS = 4
_MAX_PENDING = 8  # bounds the studies held in memory, which are large at full size


@dataclass(frozen=True)
class PhantomConfig:
    """Write synthetic chest radiographs and reports in MIMIC-CXR's layout."""

    out: Path
    """Output folder of the archive; created if absent."""
    studies: int
    """Number of studies. Of every 20 studies, 16 are for training, 2 for validation, 2 for test."""
    seed: int = 0
    """Random seed; each seed generates a different archive."""
    size: int = 256
    """Height and width of the radiographs in pixels."""
    workers: int = 1
    """Number of worker processes."""
    findings: tuple[str, ...] = FINDINGS
    """Findings that may occur. A small model learns an archive with fewer findings sooner."""
    lateral_fraction: float = 0.0
    """Fraction of the studies with a PA view that also have a lateral view."""
    history: bool = False
    """Reports of a patient's follow-up studies compare with the prior study: new, unchanged, increased, resolved."""
    headers: Headers = "basic"
    """Variety of the DICOM headers: basic (the attributes that affect pixel decoding) or openi (image formats,
    machines, windows and encodings as frequent as in Open-I)."""
    masks: bool = False
    """Also write finding masks of the frontal views to masks/, which `medunifier ingest --masks` reads."""

    def __post_init__(self) -> None:
        if not 1 <= self.studies <= MOST_STUDIES:
            raise ValueError(f"studies must be 1 to {MOST_STUDIES}, got {self.studies}")
        if self.size < SMALLEST_SIZE:
            raise ValueError(f"size must be at least {SMALLEST_SIZE}, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.masks and self.headers != "basic":
            raise ValueError(
                "masks cover the whole image, but headers openi crop it to the format of a radiograph: choose one"
            )
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        self.phantom()

    def phantom(self) -> Phantom:
        """Return the phantom with these settings."""
        return Phantom(
            self.size, self.seed, self.findings, lateral_fraction=self.lateral_fraction, history=self.history
        )


@dataclass(frozen=True)
class _Job:
    phantom: Phantom
    headers: Headers
    masks: bool
    start: int
    stop: int
    root: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the archive."""
    write_archive(parse_config(PhantomConfig, argv, prog="medunifier phantom"))


def write_archive(config: PhantomConfig) -> None:
    """Write the archive, or complete an interrupted one. A complete archive is left as it is.

    Raises:
        UserError: if the folder holds an archive with other settings, or other files.
    """
    if _is_done(config):
        print(f"{config.out} already holds these {config.studies} studies")
        return
    starts = range(0, config.studies, _STUDIES_PER_JOB)
    phantom = config.phantom()
    jobs = [
        _Job(phantom, config.headers, config.masks, start, min(start + _STUDIES_PER_JOB, config.studies), config.out)
        for start in starts
    ]
    rows: list[StudyRow] = []
    can_continue()
    with Progress(config.studies, "phantoms", unit="studies") as progress:
        if config.workers == 1:
            for job in jobs:
                rows += _write_studies(job)
                progress.advance(job.stop - job.start)
        else:
            with open_executor(config.workers) as executor:
                for done in run_jobs(_write_studies, jobs, executor):
                    rows += done
                    progress.advance(len(done))
    write_tables(rows, config.out)
    write_json(config.out / MANIFEST, {**_identity(config), "complete": True})
    print(f"{config.out}: {config.studies} studies of {len({row.patient_id for row in rows})} patients")


def _write_studies(job: _Job) -> list[StudyRow]:
    rows = []
    # Half the time would go into waiting for the disk, so the next studies are rendered meanwhile.
    with ThreadPoolExecutor(_WRITERS) as writers:
        pending: deque[Future[None]] = deque()
        for index in range(job.start, job.stop):
            row, files = study_files(job.phantom, index, job.headers, job.masks)
            rows.append(row)
            pending.append(writers.submit(write_missing, files, job.root))
            if len(pending) > _MAX_PENDING:
                pending.popleft().result()
        for writing in pending:
            writing.result()
    return rows


def _identity(config: PhantomConfig) -> dict[str, Any]:
    """Return the settings that determine the files of an archive."""
    identity = {
        "version": _VERSION,
        "studies": config.studies,
        "seed": config.seed,
        "size": config.size,
        "findings": list(config.findings),
    }
    # An option at its default is omitted, so that archives written before it existed still match.
    for option in fields(config):
        if option.name in _OMITTED_AT_DEFAULT and getattr(config, option.name) != option.default:
            identity[option.name] = getattr(config, option.name)
    return identity


def _is_done(config: PhantomConfig) -> bool:
    """Return whether a former run has completed the archive; create the folder and its manifest if absent."""
    manifest = config.out / MANIFEST
    if manifest.exists():
        former = read_json(manifest, "a phantom archive")
        done = former.pop("complete", False)
        refuse_other_settings(config.out, former, _identity(config))
        remove_partial(config.out)
        return bool(done)
    refuse_occupied(config.out)
    write_json(manifest, {**_identity(config), "complete": False})
    return False
