"""Write one shard of an ingest from study records: a pure function that can run on any worker and be repeated."""

import faulthandler
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medunifier.data.images.dicom import Radiograph, Windowing
from medunifier.data.images.isolated import MAX_SECONDS, IsolatedReader
from medunifier.data.images.masks import member_name, read_masks
from medunifier.data.images.pixels import UnreadableImage
from medunifier.data.images.radiograph import check_burned_in, check_chest, read_image
from medunifier.data.images.resize import Fit
from medunifier.data.images.views import view_position
from medunifier.data.ingest.duplicates.fingerprints import FINGERPRINT, fingerprint
from medunifier.data.ingest.pseudonyms import pseudonym
from medunifier.data.records import StudyRecord
from medunifier.data.reports.labeler import NoFindingRule, label_report
from medunifier.data.reports.plain_sections import section_text, split_plain_sections
from medunifier.data.reports.redaction import redact
from medunifier.data.reports.sections import FULL_REPORT, LAST_PARAGRAPH, one_line, split_sections, training_text
from medunifier.data.shards.dataset import encode_info, encode_png, write_shard
from medunifier.shared.artifacts import atomic_file, write_json
from medunifier.shared.files.grey_levels import to_grey_levels

Unsectioned = Literal["leave_out", "findings"]

COUNTS = ("redacted", "without_headers", "without_sections")
"""Counts of report texts in a shard's report."""

BEGUN = ".begun"
"""Suffix of a marker file beside the shard's report, written before the first image is read."""


@dataclass(frozen=True)
class Transform:
    """Processing of pixels and texts; recorded in the manifest."""

    size: int
    bits: int
    text: str
    burned_in: bool = False
    """Accept images whose header declares burned-in text."""
    redact: tuple[str, ...] = ()
    """Regular expressions whose matches in reports are replaced by ``___``."""
    fit: Fit = "pad"
    """How an image is fitted to a square."""
    window: Windowing = "header"
    """Which grey levels of a DICOM file are mapped to [0, 1]."""
    chest_only: bool = False
    """Refuse images whose header states that they are not chest radiographs."""
    unsectioned: Unsectioned = "leave_out"
    """How to treat a report in which neither findings nor impression has a header."""
    no_finding: NoFindingRule = "known"
    """Rule of No Finding for labels that are extracted from reports."""


@dataclass(frozen=True)
class ShardJob:
    """The studies of one shard and its path. ``key`` is the pseudonym key: in memory only."""

    shard: Path
    report: Path
    """Written last, with the manifest's row and the rejects: its presence means that the shard is finished."""
    source: str
    records: tuple[StudyRecord, ...]
    transform: Transform
    key: bytes
    fingerprints: bool = True
    """Store the images' fingerprints beside the report, for the duplicate search."""


@dataclass
class Tally:
    """Contents of a shard's report besides the manifest's row. Stored beside the shards, so it holds no path."""

    fingerprints: list[np.ndarray] = field(default_factory=list)

    rejects: list[dict[str, Any]] = field(default_factory=list)
    redacted: int = 0
    without_headers: int = 0
    """Reports in which no section header was found."""
    without_sections: int = 0
    """Reports with headers, but none of findings or impression."""


def run_shard_job(job: ShardJob) -> Path:
    """Write the shard, then its report, and return the report's path.

    A shard that this run began before and did not finish may contain an image that crashes its decoder, so its images
    are read with isolated decoding. The shard's bytes do not depend on how the images are decoded.
    """
    begun = job.report.with_suffix(BEGUN)
    with IsolatedReader() as isolated:
        read = isolated.read if begun.exists() else _read_with_timeout
        write_json(begun, {})
        tally = Tally()
        row = write_shard(job.shard, _samples(job, tally, read))
    if job.fingerprints:
        with atomic_file(_fingerprints_path(job)) as partial, open(partial, "wb") as file:
            np.save(file, np.array(tally.fingerprints, FINGERPRINT), allow_pickle=False)
    counts = {name: getattr(tally, name) for name in COUNTS}
    write_json(job.report, {"row": row, "rejects": tally.rejects, **counts})
    return job.report


def job_fingerprints(job: ShardJob) -> np.ndarray:
    """Return the fingerprints of a finished job's images, in the shard's order: (N,) of :data:`FINGERPRINT`."""
    return np.load(_fingerprints_path(job), allow_pickle=False)


def _fingerprints_path(job: ShardJob) -> Path:
    return job.report.with_suffix(".npy")


def _read_with_timeout(path: Path, size: int, fit: Fit, window: Windowing) -> Radiograph:
    """Read the image; end this process if a codec hangs, since nothing in Python can interrupt it."""
    with open(os.devnull, "w") as devnull:
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True, file=devnull)
        try:
            return read_image(path, size, fit, window)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _samples(
    job: ShardJob, tally: Tally, read: Callable[[Path, int, Fit, Windowing], Radiograph]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    transform = job.transform
    for position, record in enumerate(job.records):
        study = pseudonym(job.key, "study", record.study_id)
        members: dict[str, bytes] = {}
        views: list[str] = []
        for number, view in enumerate(record.views):
            try:
                radiograph = read(view.path, transform.size, transform.fit, transform.window)
                check_burned_in(radiograph, transform.burned_in)
                if transform.chest_only:
                    check_chest(radiograph)
                masks = read_masks(view.masks, radiograph.stored, transform.size, transform.fit, radiograph.geometry)
            except UnreadableImage as error:
                tally.rejects.append({"study_id": study, "view": number, "reason": error.reason})
                continue
            pixels = to_grey_levels(radiograph.pixels, transform.bits)
            members[f"{len(views)}.png"] = encode_png(pixels)
            for finding, mask in masks.items():
                members[member_name(len(views), finding)] = encode_png(mask.astype(np.uint8) * np.uint8(255))
            if job.fingerprints:
                tally.fingerprints.append(fingerprint(pixels, position, number, len(views)))
            views.append(view_position(view.position) or view_position(radiograph.view))
        if views:
            members["json"] = encode_info(_info(job, record, study, views, tally))
            yield study, members


def _info(job: ShardJob, record: StudyRecord, study: str, views: list[str], tally: Tally) -> dict[str, Any]:
    sections = report_sections(record, job.transform.unsectioned, tally)
    # Before redaction, whose patterns may match a word of a finding, and which joins the lines of a list.
    labels = study_labels(record, sections, job.transform.no_finding)
    if job.transform.redact:
        for name in sections:
            # Join lines first, so that a pattern also matches across a line break.
            sections[name], count = redact(one_line(sections[name]), job.transform.redact)
            tally.redacted += count
    text = training_text(sections, job.transform.text)
    return {
        "study_id": study,
        "patient_id": pseudonym(job.key, "patient", record.patient_id),
        "views": views,
        "split": record.split,
        "report": {
            "findings": one_line(sections.get("findings", "")),
            "impression": one_line(sections.get("impression", "")),
            "text": text,
        },
        "labels": dict(labels),
        "source": job.source,
    } | ({} if record.visit is None else {"visit": record.visit})


def study_labels(record: StudyRecord, sections: Mapping[str, str], no_finding: NoFindingRule) -> Mapping[str, int]:
    """Return the labels of the data set or, if it has none for this study, those that its report states."""
    if record.labels is not None:
        return record.labels
    text = "\n\n".join(sections.get(name, "") for name in ("findings", "impression")).strip()
    return label_report(text, no_finding) if text else {}


def report_sections(record: StudyRecord, unsectioned: Unsectioned, tally: Tally) -> dict[str, str]:
    """Return findings and impression only: other sections may contain identifying text.

    ``tally`` counts the reports that lack them.
    """
    if record.findings is not None or record.impression is not None:
        stated = {"findings": record.findings or "", "impression": record.impression or ""}
        return {name: section_text(text, name) for name, text in stated.items()}
    if not record.report.strip():
        return {}
    sections = split_sections(record.report) if record.mimic_form else split_plain_sections(record.report)
    if not sections.keys() & {"findings", "impression"}:
        tally.without_headers += FULL_REPORT in sections
        tally.without_sections += FULL_REPORT not in sections
        if unsectioned == "findings":
            sections["findings"] = sections.get(LAST_PARAGRAPH) or sections.get(FULL_REPORT, "")
    return {name: sections.get(name, "") for name in ("findings", "impression")}
