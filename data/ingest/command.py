"""``medunifier ingest``: convert an archive of chest radiographs to image shards with a manifest.

A source yields study records, patients are assigned to splits and get pseudonyms, and every shard is written by an
independent job. An interrupted ingest resumes with the missing shards; the output does not depend on interruptions or
on the number of workers. ``--check`` only reports (:mod:`medunifier.data.ingest.check`).
"""

import csv
import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunifier.data.images.dicom import Windowing
from medunifier.data.images.masks import add_masks
from medunifier.data.images.resize import Fit
from medunifier.data.ingest.check import check_source, reason_lines
from medunifier.data.ingest.duplicates.removal import RemovalJob, removal_jobs, replace_shards, run_removal_job
from medunifier.data.ingest.duplicates.search import (
    DUPLICATES,
    Duplicates,
    ShardImage,
    find_duplicates,
    write_duplicates,
)
from medunifier.data.ingest.executors import WorkerDied, open_executor, run_jobs
from medunifier.data.ingest.find_study import LEFT_OUT, NOTHING_LEFT_OUT, find_left_out, find_study
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
from medunifier.data.reports.label_names import label_counts, label_lines
from medunifier.data.reports.labeler import NoFindingRule
from medunifier.data.reports.redaction import patterns
from medunifier.data.shards.dataset import MANIFEST, shard_name
from medunifier.data.shards.prior_studies import number_visits
from medunifier.data.sources import WITHOUT_TABLES, SourceOptions, read_source
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
from medunifier.shared.files.os_services import usable_cores
from medunifier.shared.files.settings_record import begin_or_continue, refuse_other_settings
from medunifier.shared.progress import Progress

_UNFINISHED = ".ingest"  # reports of finished shards, until the manifest replaces them
_WITHOUT = "without"  # subfolder: shards rewritten without duplicates, until all of them are written
REJECTS = "rejects.csv"
_SHOWN_REASONS = 5
_SHOWN_LABELS = 30
_FIT_DESCRIPTION: dict[Fit, str] = {"pad": "padded with black", "crop": "cropped to the central square"}

LATER_SETTINGS = {"fit": "pad", "window": "header", "chest_only": False}
"""Omitted from a plan's digest at these values, so that shards of older versions are recognized."""


@dataclass(frozen=True)
class IngestConfig:
    """Read an archive of chest radiographs and write image shards with a manifest."""

    source: str
    """Source adapter: phantom, mimic-cxr, mimic-cxr-jpg, chexpert, chexpert-plus, openi, r2gen, padchest, vindr,
    rsna, siim, nih, covidx, csv, dicom-folder."""
    root: str
    """Root folder of the archive, or its fsspec URL (s3://bucket/mimic-cxr)."""
    out: str = ""
    """Output folder for the shards; not needed with --check."""
    check: bool = False
    """Report what is present, missing and unreadable, and write nothing."""
    check_images: int = 100
    """Images that --check decodes, evenly spaced over the archive; 0 = all."""
    check_names: bool = False
    """With --check, also print file names and table lines, which may contain patient names."""
    size: int = 256
    """Side of the square output images, in pixels; the aspect ratio is kept."""
    fit: Fit = "pad"
    """pad: the whole image, padded with black to a square. crop: the largest central square."""
    window: Windowing = "header"
    """header: apply the VOI LUT or first window of the DICOM file. full: the full range of the stored bits."""
    chest_only: bool = False
    """Refuse DICOM files whose header states that they are not radiographs, or not of the chest."""
    bits: Literal[8, 16] = 8
    """Bit depth of the written PNGs."""
    text: Literal["findings", "impression", "findings+impression"] = "findings+impression"
    """Report sections used as training text."""
    no_finding: NoFindingRule = "known"
    """Rule of No Finding where labels are extracted from reports. known: every sentence is recognised as normal, a
    denial, a device or neutral. chexpert: that of chexpert-labeler, for comparison with published figures."""
    unsectioned: Unsectioned = "leave_out"
    """Reports in which neither findings nor impression has a header. leave_out: write no text and count them in the
    manifest. findings: use the whole report, or its last paragraph, including any clinical history in it."""
    workers: int = 0
    """Worker processes; 0 = one per core."""
    cluster: str = ""
    """Address of a Dask scheduler (tcp://HOST:PORT) to run the jobs on, instead of local processes."""
    shard_studies: int = 256
    """Studies per shard."""
    validate_fraction: float = 0.1
    """Fraction of the patients for validation, where the source has no official split."""
    test_fraction: float = 0.1
    """Fraction of the patients for testing, where the source has no official split."""
    burned_in: Literal["refuse", "accept"] = "refuse"
    """What to do with DICOM files whose header declares burned-in text (BurnedInAnnotation YES)."""
    duplicates: Literal["report", "remove", "ignore"] = "report"
    """Exact and near-duplicate images. report: list them in duplicates.csv. remove: also remove from train what is in
    validate or test, and from validate what is in test. ignore: do not search."""
    redact: str = ""
    """Comma-separated names of patterns whose matches in reports are replaced by "___": contacts, dates, times,
    phones, names, places, numbers, or all. Empty: free text is kept unchanged."""
    redact_file: str = ""
    """File with additional patterns, one regular expression per line."""
    find: str = ""
    """Pseudonym of a study or patient: print its files in the archive, and write nothing. left_out: print the files
    and table rows that never became a study, such as damaged files without a study, and the images that are missing,
    with the reason."""
    masks: str = ""
    """Folder of masks to add to the shards, named IMAGE.FINDING.png ("1234.pleural-effusion.png" for 1234.dcm), white
    where the finding is, of the same size as the image. SIIM's masks are in its table."""
    key_file: str = DEFAULT_KEY_FILE
    """Pseudonym key file; created if absent. Keep it to link later studies, delete it to make them irreversible."""
    options: SourceOptions = field(default_factory=SourceOptions)
    """Options of individual sources."""

    def __post_init__(self) -> None:
        if not self.out and not self.check and not self.find:
            raise ValueError("give --out DIR for the shards, or --check to report without writing")
        if is_url(self.out):
            raise ValueError(f"out must be a local folder, got {self.out}: copy the finished shards there")
        if self.check_images < 0:
            raise ValueError(f"check_images must be at least 0, got {self.check_images}")
        if not 16 <= self.size <= 4096:
            raise ValueError(f"size must be 16 to 4096, got {self.size}")
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
            unsectioned=config.unsectioned,
            no_finding=config.no_finding,
        )
    elif config.find == LEFT_OUT:
        print("\n".join(find_left_out(config.source, config.root, config.options)) or NOTHING_LEFT_OUT)
    elif config.find:
        archive = read_source(config.source, config.root, config.options)
        print("\n".join(find_study(archive.records, load_key(config.key_file), config.find)))
    else:
        ingest(config)


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Write the shards of ``config``, resuming an interrupted run, and return the manifest.

    Raises:
        UserError: for an unreadable source, a folder with shards of other settings, a full disk.
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
        shutil.rmtree(out / _UNFINISHED, ignore_errors=True)  # a previous run was killed after writing the manifest
        remove_partial(out)
        print(f"{out} is complete already: {_summary(manifest)}")
        return dict(manifest)
    _begin(out, plan)
    died = False
    while todo := [job for job in jobs if not job.report.is_file()]:
        try:
            _run(config, jobs, todo)
        except WorkerDied:
            # An image may have crashed the codec: begun shards are now read with isolated decoding. A second crash
            # without progress in between has another cause.
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
    strictest_first = sorted(jobs, key=lambda job: -SPLITS.index(_split(job)))
    images, digests = [], []
    for job in strictest_first:
        ids = [(pseudonym(key, "patient", r.patient_id), pseudonym(key, "study", r.study_id)) for r in job.records]
        for row in job_fingerprints(job):
            patient, study = ids[row["record"]]
            view, image = int(row["view"]), int(row["image"])
            images.append(ShardImage(patient, study, view, image, _split(job), job.shard.name))
            digests.append(row["digest"].tobytes())
    return find_duplicates(images, digests, (job_fingerprints(job)["thumbnail"] for job in strictest_first))


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
    return config.workers or usable_cores()


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
        no_finding=config.no_finding,
    )


def _plan(
    config: IngestConfig, records: Sequence[StudyRecord], key: bytes, out: Path, transform: Transform
) -> list[ShardJob]:
    """Return the shard jobs of each split: studies in order of their pseudonyms, so that a shard mixes patients."""
    jobs = []
    for split in SPLITS:
        studies = sorted(
            (record for record in records if record.split == split),
            key=lambda record: pseudonym(key, "study", record.study_id),
        )
        for number, begin in enumerate(range(0, len(studies), config.shard_studies)):
            name = shard_name(split, number)
            jobs.append(
                ShardJob(
                    shard=out / name,
                    report=out / _UNFINISHED / f"{name}.json",
                    source=config.source,
                    records=tuple(studies[begin : begin + config.shard_studies]),
                    transform=transform,
                    key=key,
                    fingerprints=config.duplicates != "ignore",
                )
            )
    return jobs


def _plan_digest(config: IngestConfig, jobs: Sequence[ShardJob], key: bytes, transform: Transform) -> str:
    """Return a keyed digest of everything that determines the shards before pixels are read; it reveals no id.

    It omits the order of visits, and newer options at their defaults, so that shards of older versions match.
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
                        # Nothing is added without masks, so that shards of earlier versions are recognized.
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
    """Start the folder for this plan, or resume an interrupted run of it."""
    marker = out / _UNFINISHED / "plan.json"
    if begin_or_continue(marker, {"plan": plan}, out):
        _remove_remnants(out)
        for begun in (out / _UNFINISHED).glob(f"*{BEGUN}"):
            begun.unlink()  # a run stopped from outside is no reason for isolated decoding, which is slow
    else:
        remove_partial(out / _UNFINISHED)  # of a run that was killed while writing its plan


def _remove_remnants(out: Path) -> None:
    """Remove partial files of dead workers, which contain patient images."""
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
            {"study_id": image.study, "view": image.view, "reason": f"duplicate of an image in {split}"}
            for image, split in duplicates.cross_split.items()
        ]
    labels = label_counts(record.label_names for record in records)
    splits: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for name, row in rows.items():
        splits[name.rpartition("-")[0]][name] = row
    kept = sum(row["samples"] for row in rows.values())
    if not kept:
        shutil.rmtree(out)
        reasons = "; ".join(reason_lines((reject["reason"] for reject in rejects), 3))
        raise UserError(f"no readable radiograph under {config.root}: {reasons}")
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": config.source,
        "plan": plan,
        "transform": {
            "size": config.size,
            "bits": config.bits,
            "resize": "aspect kept, anti-aliased, " + _FIT_DESCRIPTION[config.fit],
            "window": config.window,
            "chest_only": config.chest_only,
            "text": config.text,
            "unsectioned": config.unsectioned,
            "no_finding": config.no_finding,
            "burned_in": config.burned_in,
            # Only the number: the user's patterns may be patient names.
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
            "label_names": labels,
            "source_problems": dict(sorted(Counter(problem.reason for problem in problems).items())),
        },
        "duplicates": {"option": config.duplicates, **(duplicates.counts() if duplicates else {})},
        "splits": splits,
    }
    # Table rows that never became a study have no pseudonym.
    rejects += [{"study_id": "", "view": "", "reason": p.reason} for p in problems]
    _write_rejects(out / REJECTS, rejects)
    if duplicates:
        write_duplicates(out / DUPLICATES, duplicates)
    _remove_remnants(out)  # a cluster may have repeated the job of a dead worker
    # The manifest is written last: its presence means that everything else is complete.
    write_json(out / MANIFEST, manifest)
    shutil.rmtree(out / _UNFINISHED)
    for line in reason_lines((reject["reason"] for reject in rejects), _SHOWN_REASONS):
        print(f"left out: {line}", file=sys.stderr)
    if rejects:
        print(
            f"full list: {out / REJECTS}; --find STUDY prints the files of a study in it, --find {LEFT_OUT} those "
            "without a study and those that are missing",
            file=sys.stderr,
        )
    for line in label_lines(labels, _SHOWN_LABELS):
        print(f"label {line}", file=sys.stderr)
    _report_unsectioned(texts, config.unsectioned)
    if duplicates and duplicates.rows:
        _print_duplicates(duplicates, config.duplicates == "remove", out)
    return manifest


def _report_unsectioned(counts: dict[str, int], unsectioned: Unsectioned) -> None:
    unsplit, other = counts["without_headers"], counts["without_sections"]
    if unsplit or other:
        action = "used as findings" if unsectioned == "findings" else "left out (--unsectioned findings uses it)"
        print(
            f"{unsplit} reports without section headers, {other} without findings and impression: "
            f"their text was {action}",
            file=sys.stderr,
        )


def _print_duplicates(duplicates: Duplicates, removed: bool, out: Path) -> None:
    counts = duplicates.counts()
    print(
        f"duplicates: {counts['exact']} exact, {counts['near']} near; {counts['of_another_patient']} repeat an "
        f"image of another patient, {counts['in_another_split']} are in two splits; see {out / DUPLICATES}",
        file=sys.stderr,
    )
    if counts["in_another_split"] and not removed:
        print(
            "duplicates across splits leak test data into training; "
            "--duplicates remove, with another --out, removes them",
            file=sys.stderr,
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
    where = "files left out" if manifest["source"] in WITHOUT_TABLES else "problems in the source's tables"
    suffix = f", {problems} {where}" if problems else ""
    return f"{counts['kept_studies']} studies ({by_split}), {counts['rejected_images']} images rejected{suffix}"
