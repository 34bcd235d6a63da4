"""`medunifier phantom`: writes an archive of synthetic chest radiographs with reports."""

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
from medunifier.shared.config import parse_config
from medunifier.shared.files.settings_record import refuse_occupied, refuse_other_settings
from medunifier.shared.progress import Progress

MANIFEST = "phantom.json"
_VERSION = 1
_LATER_OPTIONS = ("lateral_fraction", "history", "headers", "masks")
_STUDIES_A_JOB = 25
_WRITERS = 4
_MOST_PENDING = 8  # studies in memory, which are large at full size


@dataclass(frozen=True)
class PhantomConfig:
    """Write synthetic chest radiographs and reports in MIMIC-CXR's layout."""

    out: Path
    """Folder of the archive; made if absent."""
    studies: int
    """How many studies. Of every twenty 16 are for training, 2 for validation, 2 for test."""
    seed: int = 0
    """Another seed is another archive."""
    size: int = 256
    """Height and width of the radiographs in pixels."""
    workers: int = 1
    """Processes."""
    findings: tuple[str, ...] = FINDINGS
    """Findings that may occur: fewer make an archive that a small model learns sooner."""
    lateral_fraction: float = 0.0
    """Share of the studies with a PA film that have a lateral view too."""
    history: bool = False
    """Reports of a patient's later visits compare with the visit before: new, unchanged, increased, resolved."""
    headers: Headers = "basic"
    """Spread of the DICOM headers: basic (what changes the reading of pixels) or openi (film formats, machines,
    windows and codings in the shares of Open-I's films)."""
    masks: bool = False
    """Also write where the findings of a frontal film lie, into masks/, which `medunifier ingest --masks` reads."""

    def __post_init__(self) -> None:
        if not 1 <= self.studies <= MOST_STUDIES:
            raise ValueError(f"studies must be 1 to {MOST_STUDIES}, got {self.studies}")
        if self.size < SMALLEST_SIZE:
            raise ValueError(f"size must be at least {SMALLEST_SIZE}, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.masks and self.headers != "basic":
            raise ValueError(
                "masks are of the whole picture, and headers openi cut it to a film's format: choose one"
            )
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        self.phantom()

    def phantom(self) -> Phantom:
        """The phantom that is written."""
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
    """Reads the command line and writes the archive."""
    write_archive(parse_config(PhantomConfig, argv, prog="medunifier phantom"))


def write_archive(config: PhantomConfig) -> None:
    """Writes the archive, or continues one that was interrupted, or says that it is done.

    Raises:
        UserError: if the folder holds other phantoms, or other files.
    """
    if _is_done(config):
        print(f"{config.out} already holds these {config.studies} studies")
        return
    starts = range(0, config.studies, _STUDIES_A_JOB)
    phantom = config.phantom()
    jobs = [
        _Job(phantom, config.headers, config.masks, start, min(start + _STUDIES_A_JOB, config.studies), config.out)
        for start in starts
    ]
    rows: list[StudyRow] = []
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
    # Half the time would go in waiting for the disk: the next studies are drawn meanwhile.
    with ThreadPoolExecutor(_WRITERS) as writers:
        pending: deque[Future[None]] = deque()
        for index in range(job.start, job.stop):
            row, files = study_files(job.phantom, index, job.headers, job.masks)
            rows.append(row)
            pending.append(writers.submit(write_missing, files, job.root))
            if len(pending) > _MOST_PENDING:
                pending.popleft().result()
        for writing in pending:
            writing.result()
    return rows


def _identity(config: PhantomConfig) -> dict[str, Any]:
    """What two runs must share to be about the same files."""
    identity = {
        "version": _VERSION,
        "studies": config.studies,
        "seed": config.seed,
        "size": config.size,
        "findings": list(config.findings),
    }
    # An option at its default is not told: archives from before there was that option are known again.
    for option in fields(config):
        if option.name in _LATER_OPTIONS and getattr(config, option.name) != option.default:
            identity[option.name] = getattr(config, option.name)
    return identity


def _is_done(config: PhantomConfig) -> bool:
    """True if a former run has finished; makes the folder and marks it as ours if there was none."""
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
