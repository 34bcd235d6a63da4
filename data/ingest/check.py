"""``medunifier ingest --check``: report what an archive contains and what cannot be read. Writes nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medunifier.data.files.header import read_identity
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import check_burned_in, check_chest, read_image
from medunifier.data.images.views import view_position
from medunifier.data.ingest.executors import open_executor, run_jobs
from medunifier.data.ingest.shard_job import Tally, Unsectioned, report_sections, study_labels
from medunifier.data.ingest.splits import official_splits
from medunifier.data.records import StudyRecord
from medunifier.data.remote_paths import is_file, open_file
from medunifier.data.reports.label_names import label_counts
from medunifier.data.reports.labeler import NoFindingRule
from medunifier.data.sources import WITHOUT_TABLES, Archive
from medunifier.shared.errors import UserError
from medunifier.shared.progress import Progress

_SHOWN = 5
_NOT_STATED = "not stated"
_JOB_IMAGES = 32
_JOB_STUDIES = 256


@dataclass(frozen=True)
class SourceReport:
    """Counts and problems found by :func:`check_source`."""

    counts: dict[str, int]
    """patients, studies, images, studies with a report, and as ingest finds them: studies with labels (of the data
    set or of the report), reports without section headers, reports without findings and impression.
    The last three do not count studies whose images are missing or were found unreadable."""
    splits: dict[str, int]
    """Studies by official split; "assigned at ingest" counts those without one."""
    views: dict[str, int]
    """Images by view position; that of the header where the tables have none; "not stated" if neither has one,
    "other" for any other text."""
    missing: list[Path]
    decoded: int
    unreadable: list[tuple[Path, str]]
    """File and reason, of the images that were decoded."""
    labels: dict[str, dict[str, Any]]
    """Label names of the data set, with their observation and number of studies; see :func:`label_counts`."""
    problems: dict[str, int]
    """Reason -> number of table rows that the source skipped or used incompletely."""


def check_source(
    archive: Archive,
    source: str,
    root: str,
    images: int,
    workers: int,
    cluster: str,
    burned_in: bool = False,
    chest_only: bool = False,
    names: bool = False,
    unsectioned: Unsectioned = "leave_out",
    no_finding: NoFindingRule = "known",
) -> SourceReport:
    """Check that every file exists, decode ``images`` of them (0 = all), and print a table.

    Args:
        archive, source, root: the archive to check, and its source and root folder for the table's title.
        images: number of images to decode, evenly spaced; 0 = all.
        workers, cluster: as in :func:`open_executor`.
        burned_in, chest_only: whether to accept burned-in text and to require chest radiographs, as in ingest.
        unsectioned, no_finding: treatment of reports, as in ingest.
        names: also print the first missing or unreadable file names, which may contain patient names.

    Raises:
        UserError: after printing the table, if ingest would fail: no image can be read, or the official splits
            place one patient in two splits.
    """
    paths = [view.path for record in archive.records for view in record.views]
    missing = [path for path in paths if not is_file(path)]
    absent = set(missing)
    sampled = _evenly_spaced([path for path in paths if path not in absent], images)
    check_batch = partial(try_images, burned_in=burned_in, chest_only=chest_only)
    unreadable = _unreadable(sampled, workers, cluster, check_batch)
    views = [view for record in archive.records for view in record.views]
    positions = Counter(_position(view.position) for view in views)
    headers = [view.path for view in views if not view.position.strip() and view.path not in absent]
    positions -= Counter({_NOT_STATED: len(headers)})
    positions += _counted(_header_views, headers, _JOB_IMAGES, workers, cluster, "headers")
    check_texts = partial(_texts, unsectioned=unsectioned, no_finding=no_finding)
    refused = absent | {path for path, _ in unreadable}
    kept = [record for record in archive.records if any(view.path not in refused for view in record.views)]
    texts = _counted(check_texts, kept, _JOB_STUDIES, workers, cluster, "reports")
    report = SourceReport(
        counts=_counts(archive.records) | dict(texts),
        splits=dict(Counter(record.split or "assigned at ingest" for record in archive.records)),
        views=dict(positions.most_common()),
        labels=label_counts(record.label_names for record in archive.records),
        missing=missing,
        decoded=len(sampled),
        unreadable=unreadable,
        problems=dict(Counter(problem.reason for problem in archive.problems).most_common()),
    )
    _print(report, archive, source, root, names)
    if len(unreadable) == len(sampled):
        reason = f"; first reason: {unreadable[0][1]}" if unreadable else f": {len(missing)} files are missing"
        raise UserError(f"{root}: no image can be read{reason}")
    official_splits(archive.records)
    return report


def _position(text: str) -> str:
    return view_position(text) or ("other" if text.strip() else _NOT_STATED)


def _counted(
    job: Callable[..., Counter[str]], items: Sequence[Any], size: int, workers: int, cluster: str, what: str
) -> Counter[str]:
    """Return the sum of the counts that ``job`` returns for batches of the items."""
    jobs = [items[begin : begin + size] for begin in range(0, len(items), size)]
    total: Counter[str] = Counter()
    if len(jobs) == 1:
        return job(jobs[0])  # no process is worth its start
    with Progress(len(jobs), what, "batches") as progress, open_executor(workers, cluster) as pool:
        for counts in run_jobs(job, jobs, pool):
            total.update(counts)
            progress.advance()
    return total


def _header_views(paths: Sequence[Path]) -> Counter[str]:
    """Return the number of files by the view position of their header."""
    counts: Counter[str] = Counter()
    for path in paths:
        try:
            with open_file(path) as file:
                view = read_identity(file).view
        except OSError:
            view = ""
        counts[view or _NOT_STATED] += 1
    return counts


def _texts(records: Sequence[StudyRecord], unsectioned: Unsectioned, no_finding: NoFindingRule) -> Counter[str]:
    """Return the numbers of studies with labels and of reports without sections, as ingest finds them."""
    tally = Tally()
    labelled = sum(
        bool(study_labels(record, report_sections(record, unsectioned, tally), no_finding)) for record in records
    )
    return Counter(
        {
            "studies with labels": labelled,
            "reports without section headers": tally.without_headers,
            "reports without findings and impression": tally.without_sections,
        }
    )


def _counts(records: Sequence[StudyRecord]) -> dict[str, int]:
    return {
        "patients": len({record.patient_id for record in records}),
        "studies": len(records),
        "images": sum(len(record.views) for record in records),
        "studies with a report": sum(bool(r.report or r.findings or r.impression) for r in records),
    }


def _evenly_spaced(paths: list[Path], images: int) -> list[Path]:
    """Return ``images`` evenly spaced paths, since archives are ordered and their ends differ."""
    if not images or images >= len(paths):
        return paths
    return [paths[number * len(paths) // images] for number in range(images)]


def _unreadable(
    paths: list[Path], workers: int, cluster: str, check_batch: Callable[..., Any]
) -> list[tuple[Path, str]]:
    jobs = [paths[begin : begin + _JOB_IMAGES] for begin in range(0, len(paths), _JOB_IMAGES)]
    found: list[tuple[Path, str]] = []
    with Progress(len(paths), "check", "images") as progress, open_executor(workers, cluster) as pool:
        for checked, refused in run_jobs(check_batch, jobs, pool):
            found += refused
            progress.advance(checked, unreadable=len(found))
    return sorted(found)


def try_images(
    paths: Sequence[Path], burned_in: bool, chest_only: bool = False
) -> tuple[int, list[tuple[Path, str]]]:
    """Return the number of paths, and (path, reason) of those that ingest would refuse."""
    refused = []
    for path in paths:
        try:
            radiograph = read_image(path)
            check_burned_in(radiograph, burned_in)
            if chest_only:
                check_chest(radiograph)
        except UnreadableImage as error:
            refused.append((path, error.reason))
    return len(paths), refused


def _print(report: SourceReport, archive: Archive, source: str, root: str, names: bool) -> None:
    table = Table("", "found", box=None, title=f"{source}: {root}", title_justify="left", show_header=False)
    sections: list[tuple[str, dict[str, int]]] = [
        ("", report.counts),
        ("split ", report.splits),
        ("view ", report.views),
        ("", {"files missing": len(report.missing), "files decoded": report.decoded}),
        ("", {"files unreadable": len(report.unreadable)}),
        ("problem: ", report.problems),
    ]
    for prefix, rows in sections:
        for name, count in rows.items():
            table.add_row(f"{prefix}{name}", f"{count:,}")
    for name, row in sorted(report.labels.items(), key=lambda item: item[1]["observation"] is not None):
        table.add_row(f"label {name} -> {row['observation'] or 'dropped'}", f"{row['studies']:,}")
    # File names may contain brackets, which rich would parse as markup.
    console = Console(markup=False, highlight=False)
    console.print(table)
    if not names:
        for line in reason_lines((reason for _, reason in report.unreadable), _SHOWN):
            console.print(f"unreadable: {line}", soft_wrap=True)
        if report.missing or report.unreadable or archive.problems:
            lines = "" if source in WITHOUT_TABLES else " and table lines"
            console.print(f"--check_names true prints these file names{lines}")
        return
    _print_first(console, "missing", (str(path) for path in report.missing), len(report.missing))
    _print_first(console, "unreadable", (f"{path}: {why}" for path, why in report.unreadable), len(report.unreadable))
    _print_first(console, "problem", (f"{p.where}: {p.reason}" for p in archive.problems), len(archive.problems))


def reason_lines(reasons: Iterable[str], most: int) -> list[str]:
    """Return the ``most`` most frequent reasons with their counts, and a line that counts the others."""
    counts = Counter(reasons).most_common()
    rest = counts[most:]
    others = [f"… and {sum(count for _, count in rest):,} more, for {len(rest):,} other reasons"] if rest else []
    return [f"{reason} ({count:,})" for reason, count in counts[:most]] + others


def _print_first(console: Console, what: str, lines: Iterable[str], total: int) -> None:
    for _, line in zip(range(_SHOWN), lines, strict=False):
        console.print(f"{what}: {line}", soft_wrap=True)
    if total > _SHOWN:
        console.print(f"… and {total - _SHOWN} more {what}")
