"""``medunifier ingest``: any chest radiograph archive in, clean shards out.

Records come from a source, patients are split and get pseudonyms, and every shard is one independent job.
A killed ingest continues with the shards that are missing; what it writes does not depend on how often it
was interrupted or on how many workers it had. ``--check`` only looks (:mod:`data.source_check`).
"""

import csv
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunifier.data.images.dicom import Windowing
from medunifier.data.images.masks import add_masks
from medunifier.data.images.pixels import Fit
from medunifier.data.ingest.check import check_source
from medunifier.data.ingest.duplicates.removal import RemovalJob, removal_jobs, replace_shards, run_removal_job
from medunifier.data.ingest.duplicates.search import (
    DUPLICATES,
    Duplicates,
    ShardImage,
    find_duplicates,
    write_duplicates,
)
from medunifier.data.ingest.executors import WorkerDied, open_executor, run_jobs
from medunifier.data.ingest.find_study import find_study
from medunifier.data.ingest.pseudonyms import DEFAULT_KEY_FILE, load_key, pseudonym
from medunifier.data.ingest.shard_job import (
    BEGUN,
    COUNTS,
    ShardJob,
    Transform,
    Unsectioned,
    job_fingerprints,
    run_shard_job,
)
from medunifier.data.ingest.splits import assign_splits
from medunifier.data.records import SPLITS, Problem, StudyRecord
from medunifier.data.remote_paths import as_path, below, is_url
from medunifier.data.reports.redaction import patterns
from medunifier.data.shards.dataset import MANIFEST, shard_name
from medunifier.data.shards.prior_studies import number_visits
from medunifier.data.sources import SourceOptions, read_source
from medunifier.shared.artifacts import (
    FORMAT_VERSION,
    atomic_file,
    canonical_json,
    read_json,
    remove_partial,
    write_json,
)
from medunifier.shared.config import parse_config
from medunifier.shared.errors import UserError
from medunifier.shared.files.settings_record import begin_or_continue, refuse_other_settings
from medunifier.shared.progress import Progress

_UNFINISHED = ".ingest"  # reports of finished shards, until the manifest takes their place
_WITHOUT = "without"  # in it: shards that lost duplicates, until all of them are there
REJECTS = "rejects.csv"
_SHOWN_REASONS = 5
_FITTED: dict[Fit, str] = {"pad": "padded with black", "crop": "cut to the square in the middle"}

LATER_SETTINGS = {"fit": "pad", "window": "header", "chest_only": False}
"""Left out of a plan's digest where they have these values, so that what older versions wrote is known again."""


@dataclass(frozen=True)
class IngestConfig:
    """Read an archive of chest radiographs and write image shards with a manifest."""

    source: str
    """Which adapter: phantom, mimic-cxr, mimic-cxr-jpg, chexpert, chexpert-plus, openi, r2gen, padchest, vindr, rsna,
    siim, nih, covidx, csv, dicom-folder."""
    root: str
    """The archive's top folder, or its fsspec URL (s3://bucket/mimic-cxr)."""
    out: str = ""
    """Folder for the shards; not needed with --check."""
    check: bool = False
    """Say what is there, what is missing and what cannot be read, and write nothing."""
    check_images: int = 100
    """Images that --check decodes, spread over the archive; 0 = all."""
    check_names: bool = False
    """Let --check also print names of files and lines of tables, which may name patients."""
    size: int = 256
    """Side of the square images, in pixels; the aspect is kept."""
    fit: Fit = "pad"
    """pad: the whole film, black at its shorter sides. crop: the largest square in its middle."""
    window: Windowing = "header"
    """header: grey levels as the DICOM file's VOI table or first window shows them. full: all that its bits allow."""
    chest_only: bool = False
    """Refuse DICOM films whose header says that they are no radiographs, or not of the chest."""
    bits: Literal[8, 16] = 8
    """Depth of the written PNGs."""
    text: Literal["findings", "impression", "findings+impression"] = "findings+impression"
    """Which sections make the training text."""
    unsectioned: Unsectioned = "leave_out"
    """Reports in which neither findings nor impression has a header: leave_out writes no text of them and counts them
    in the manifest; findings takes the whole report, or its last paragraph, and with it what else stands there."""
    workers: int = 0
    """Processes; 0 = one a core."""
    cluster: str = ""
    """Address of a Dask scheduler (tcp://HOST:PORT) to run the jobs on, in place of local processes."""
    shard_studies: int = 256
    """Studies a shard."""
    validate_fraction: float = 0.1
    """Share of the patients for validation, where the source has no official split."""
    test_fraction: float = 0.1
    """Share of the patients for the test, likewise."""
    burned_in: Literal["refuse", "accept"] = "refuse"
    """DICOM files whose header says that words are burned into the picture."""
    duplicates: Literal["report", "remove", "ignore"] = "report"
    """Images that come twice, exactly or nearly: list them in duplicates.csv; also leave out of train what stands in
    validate, and out of both what stands in test; or do not look."""
    redact: str = ""
    """Patterns whose matches in reports become "___", by name and with commas between: dates, times, phones, names,
    numbers, or all; without any the free text is taken as it is."""
    redact_file: str = ""
    """File with further patterns, one regular expression a line."""
    find: str = ""
    """A study's or patient's pseudonym: print which files of the archive it stands for, and write nothing."""
    masks: str = ""
    """Folder of masks, IMAGE.FINDING.png ("1234.pleural-effusion.png" for the file 1234.dcm), the finding white, of
    the image's own size: they go into the shards. SIIM's are in its table."""
    key_file: str = DEFAULT_KEY_FILE
    """Key of the pseudonyms; made when absent. Keep it to link later studies, delete it to make them final."""
    options: SourceOptions = field(default_factory=SourceOptions)
    """What some sources need to know beside the folder."""

    def __post_init__(self) -> None:
        if not self.out and not self.check and not self.find:
            raise ValueError("give --out DIR for the shards, or --check to look without writing")
        if is_url(self.out):
            raise ValueError(f"out must be a folder of this machine, got {self.out}: copy the finished shards there")
        if self.check_images < 0:
            raise ValueError(f"check_images must be at least 0, got {self.check_images}")
        if not 16 <= self.size <= 4096:
            raise ValueError(f"size must lie in 16 ... 4096, got {self.size}")
        if self.shard_studies < 1 or self.workers < 0:
            raise ValueError("shard_studies must be at least 1 and workers at least 0")
        if min(self.validate_fraction, self.test_fraction) < 0 or self.validate_fraction + self.test_fraction >= 1:
            raise ValueError("validate_fraction and test_fraction must be at least 0 and sum to less than 1")


def main(argv: Sequence[str] | None = None) -> None:
    """``medunifier ingest``."""
    config = parse_config(IngestConfig, argv, prog="medunifier ingest")
    if config.check:
        archive = read_source(config.source, config.root, config.options)
        check_source(
            archive,
            config.source,
            config.root,
            config.check_images,
            _workers(config),
            config.cluster,
            burned_in=config.burned_in == "accept",
            chest_only=config.chest_only,
            names=config.check_names,
        )
    elif config.find:
        archive = read_source(config.source, config.root, config.options)
        print("\n".join(find_study(archive.records, load_key(config.key_file), config.find)))
    else:
        ingest(config)


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Write the shards of ``config``, or what an interrupted run left to do; returns the manifest.

    Raises:
        UserError: for an unreadable source, a folder that holds other shards, a full disk.
    """
    out = Path(config.out)
    key = load_key(config.key_file)
    archive = read_source(config.source, config.root, config.options)
    records = number_visits(assign_splits(archive.records, key, config.validate_fraction, config.test_fraction))
    if config.masks:
        records = add_masks(records, config.masks)
    transform = _transform(config)
    jobs = _plan(config, records, key, out, transform)
    plan = _plan_digest(config, jobs, key, transform)
    if (out / MANIFEST).is_file():
        manifest = read_json(out / MANIFEST, "a shard folder")
        refuse_other_settings(out, {"plan": manifest.get("plan")}, {"plan": plan})
        shutil.rmtree(out / _UNFINISHED, ignore_errors=True)  # killed after the manifest, its last but one act
        remove_partial(out)
        print(f"{out} is complete already: {_summary(manifest)}")
        return dict(manifest)
    _begin(out, plan)
    died = False
    while todo := [job for job in jobs if not job.report.is_file()]:
        try:
            _run(config, jobs, todo)
        except WorkerDied:
            # A film may have ended the codec: what was begun is read apart now. A second death with nothing
            # finished in between has another cause.
            if died and len(todo) == sum(not job.report.is_file() for job in jobs):
                raise
            died = True
        finally:
            _remove_remnants(out)
    duplicates = None if config.duplicates == "ignore" else _duplicates(jobs, key)
    removals = _remove(config, duplicates, out) if duplicates and config.duplicates == "remove" else []
    manifest = _finish(config, transform, jobs, records, archive.problems, plan, out, duplicates, removals)
    print(f"{out}: {_summary(manifest)}")
    return manifest


def _run(config: IngestConfig, jobs: Sequence[ShardJob], todo: Sequence[ShardJob]) -> None:
    studies = sum(len(job.records) for job in jobs)
    done = studies - sum(len(job.records) for job in todo)
    sizes = {job.report: len(job.records) for job in todo}
    rejected = 0
    with (
        Progress(studies, "ingest", "studies", done=done) as progress,
        open_executor(_workers(config), config.cluster) as pool,
    ):
        for report in run_jobs(run_shard_job, todo, pool):
            rejected += len(read_json(report, "a shard's report")["rejects"])
            progress.advance(sizes[report], rejected=rejected)


def _duplicates(jobs: Sequence[ShardJob], key: bytes) -> Duplicates:
    strict_first = sorted(jobs, key=lambda job: -SPLITS.index(_split(job)))
    pictures, digests = [], []
    for job in strict_first:
        names = [(pseudonym(key, "patient", r.patient_id), pseudonym(key, "study", r.study_id)) for r in job.records]
        for row in job_fingerprints(job):
            patient, study = names[row["record"]]
            view, image = int(row["view"]), int(row["image"])
            pictures.append(ShardImage(patient, study, view, image, _split(job), job.shard.name))
            digests.append(row["digest"].tobytes())
    return find_duplicates(pictures, digests, (job_fingerprints(job)["thumbnail"] for job in strict_first))


def _split(job: ShardJob) -> str:
    return job.shard.name.rpartition("-")[0]


def _remove(config: IngestConfig, duplicates: Duplicates, out: Path) -> list[RemovalJob]:
    jobs = removal_jobs(list(duplicates.cross_split), out, out / _UNFINISHED / _WITHOUT)
    if todo := [job for job in jobs if not job.report.is_file()]:
        with (
            Progress(len(jobs), "remove", "shards", done=len(jobs) - len(todo)) as progress,
            open_executor(_workers(config), config.cluster) as pool,
        ):
            for _ in run_jobs(run_removal_job, todo, pool):
                progress.advance()
    replace_shards(jobs)
    return jobs


def _workers(config: IngestConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _transform(config: IngestConfig) -> Transform:
    return Transform(
        size=config.size,
        bits=config.bits,
        text=config.text,
        burned_in=config.burned_in == "accept",
        redact=patterns(config.redact, config.redact_file),
        fit=config.fit,
        window=config.window,
        chest_only=config.chest_only,
        unsectioned=config.unsectioned,
    )


def _plan(
    config: IngestConfig, records: Sequence[StudyRecord], key: bytes, out: Path, transform: Transform
) -> list[ShardJob]:
    """Studies in the order of their pseudonyms (so that a shard mixes patients), cut into shards by split."""
    jobs = []
    for split in SPLITS:
        of_split = sorted(
            (record for record in records if record.split == split),
            key=lambda record: pseudonym(key, "study", record.study_id),
        )
        for number, begin in enumerate(range(0, len(of_split), config.shard_studies)):
            name = shard_name(split, number)
            jobs.append(
                ShardJob(
                    shard=out / name,
                    report=out / _UNFINISHED / f"{name}.json",
                    source=config.source,
                    records=tuple(of_split[begin : begin + config.shard_studies]),
                    transform=transform,
                    key=key,
                    fingerprints=config.duplicates != "ignore",
                )
            )
    return jobs


def _plan_digest(config: IngestConfig, jobs: Sequence[ShardJob], key: bytes, transform: Transform) -> str:
    """What the shards will hold, as far as it can be told before reading pixels; keyed, so it betrays no id.

    The order of the visits is not in it, nor are options that came later at their defaults: older shards stay known.
    """
    digest, root = hashlib.sha256(key), as_path(config.root)
    options = asdict(config.options)
    for later in ("date", "outside_root"):
        if options[later] == getattr(SourceOptions, later):
            del options[later]
    settings = {name: value for name, value in asdict(transform).items() if LATER_SETTINGS.get(name, ...) != value}
    digest.update(canonical_json([config.source, options, settings, config.duplicates]))
    for job in jobs:
        for record in job.records:
            digest.update(
                canonical_json(
                    [
                        job.shard.name,
                        record.study_id,
                        record.patient_id,
                        [[below(view.path, root), view.position] for view in record.views],
                        [record.report, record.findings, record.impression],
                        dict(record.labels) if record.labels is not None else None,
                        # Not told where there are none: the shards of earlier versions are known again.
                        *[
                            [number, finding, getattr(mask, "name", mask)]
                            for number, view in enumerate(record.views)
                            for finding, mask in view.masks
                        ],
                    ]
                )
            )
    return digest.hexdigest()


def _begin(out: Path, plan: str) -> None:
    """Open the folder for this plan, or take up an interrupted run of it."""
    marker = out / _UNFINISHED / "plan.json"
    if begin_or_continue(marker, {"plan": plan}, out):
        _remove_remnants(out)
        for begun in (out / _UNFINISHED).glob(f"*{BEGUN}"):
            begun.unlink()  # whoever stopped the run from outside is no reason to read films apart, which is slow
    else:
        remove_partial(out / _UNFINISHED)  # of a run that was killed as it wrote its plan


def _remove_remnants(out: Path) -> None:
    """Remove what dead workers had half written: it holds images of patients."""
    for folder in (out, out / _UNFINISHED, out / _UNFINISHED / _WITHOUT):
        remove_partial(folder)


def _finish(
    config: IngestConfig,
    transform: Transform,
    jobs: Sequence[ShardJob],
    records: Sequence[StudyRecord],
    problems: Sequence[Problem],
    plan: str,
    out: Path,
    duplicates: Duplicates | None,
    removals: Sequence[RemovalJob],
) -> dict[str, Any]:
    reports = [(job, read_json(job.report, "a shard's report")) for job in jobs]
    rejects = [reject for _, report in reports for reject in report["rejects"]]
    texts = {name: sum(report[name] for _, report in reports) for name in COUNTS}
    rows = {job.shard.name: report["row"] for job, report in reports}
    if duplicates and config.duplicates == "remove":
        rows |= {job.shard.name: read_json(job.report, "a shard's report")["row"] for job in removals}
        rejects += [
            {"study_id": picture.study, "view": picture.view, "reason": f"duplicate of an image in {split}"}
            for picture, split in duplicates.cross_split.items()
        ]
    splits: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for name, row in rows.items():
        splits[name.rpartition("-")[0]][name] = row
    kept = sum(row["samples"] for row in rows.values())
    if not kept:
        shutil.rmtree(out)
        reasons = "; ".join(f"{reason} ({count})" for reason, count in _reasons(rejects).most_common(3))
        raise UserError(f"no readable radiograph under {config.root}: {reasons}")
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": config.source,
        "plan": plan,
        "transform": {
            "size": config.size,
            "bits": config.bits,
            "resize": "aspect kept, anti-aliased, " + _FITTED[config.fit],
            "window": config.window,
            "chest_only": config.chest_only,
            "text": config.text,
            "unsectioned": config.unsectioned,
            "burned_in": config.burned_in,
            # The user's own patterns may be names of patients: their number must do.
            "redact": {
                "built_in": config.redact,
                "own_patterns": len(transform.redact) - len(patterns(config.redact, "")),
            },
        },
        "counts": {
            "patients": len({record.patient_id for record in records}),
            "studies": len(records),
            "kept_studies": kept,
            "rejected_images": len(rejects),
            "reject_reasons": dict(sorted(_reasons(rejects).items())),
            "redacted_places": texts["redacted"],
            "reports_without_headers": texts["without_headers"],
            "reports_without_findings_or_impression": texts["without_sections"],
            "source_problems": dict(sorted(Counter(problem.reason for problem in problems).items())),
        },
        "duplicates": {"option": config.duplicates, **(duplicates.counts() if duplicates else {})},
        "splits": splits,
    }
    # Rows that never became a study have no pseudonym either.
    rejects += [{"study_id": "", "view": "", "reason": p.reason} for p in problems]
    _write_rejects(out / REJECTS, rejects)
    if duplicates:
        write_duplicates(out / DUPLICATES, duplicates)
    _remove_remnants(out)  # a cluster may have repeated the job of a worker that died
    # The manifest comes last: where it is, all else is.
    write_json(out / MANIFEST, manifest)
    shutil.rmtree(out / _UNFINISHED)
    for reason, count in _reasons(rejects).most_common(_SHOWN_REASONS):
        print(f"left out: {reason} ({count})", file=sys.stderr)
    if rejects:
        print(f"all are in {out / REJECTS}; --find STUDY tells the files of a study in it", file=sys.stderr)
    _report_unsectioned(texts, config.unsectioned)
    if duplicates and duplicates.rows:
        _print_duplicates(duplicates, config.duplicates == "remove", out)
    return manifest


def _report_unsectioned(counts: dict[str, int], unsectioned: Unsectioned) -> None:
    bare, other = counts["without_headers"], counts["without_sections"]
    if bare or other:
        fate = "taken as findings" if unsectioned == "findings" else "left out (--unsectioned findings takes them)"
        print(
            f"{bare} reports without section headers, {other} without findings and impression: their text was {fate}",
            file=sys.stderr,
        )


def _print_duplicates(duplicates: Duplicates, removed: bool, out: Path) -> None:
    counts = duplicates.counts()
    print(
        f"duplicates: {counts['exact']} exact, {counts['near']} near ones; {counts['of_another_patient']} repeat an "
        f"image of another patient, {counts['in_another_split']} stand in two splits; see {out / DUPLICATES}",
        file=sys.stderr,
    )
    if counts["in_another_split"] and not removed:
        print(
            "what stands in two splits leaks; --duplicates remove, with another --out, leaves it out", file=sys.stderr
        )


def _reasons(rejects: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(reject["reason"] for reject in rejects)


def _write_rejects(path: Path, rejects: Sequence[dict[str, Any]]) -> None:
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["study_id", "view", "reason"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rejects)


def _summary(manifest: dict[str, Any]) -> str:
    counts = manifest["counts"]
    by_split = ", ".join(
        f"{split} {sum(row['samples'] for row in rows.values())}" for split, rows in manifest["splits"].items()
    )
    problems = sum(counts["source_problems"].values())
    told = f", {problems} problems of the source's tables" if problems else ""
    return f"{counts['kept_studies']} studies ({by_split}), {counts['rejected_images']} images rejected{told}"
