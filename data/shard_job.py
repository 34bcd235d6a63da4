"""One shard of an ingest: studies in, a tar out. A pure function, so it runs on any worker and may run twice."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.labels import label_report
from data.pseudonyms import pseudonym
from data.radiograph import UnreadableImage, read_film
from data.records import StudyRecord
from data.sections import FULL_REPORT, LAST_PARAGRAPH, one_line, split_sections, training_text
from data.shards import encode_info, encode_png, write_shard
from shared.artifacts import write_json


@dataclass(frozen=True)
class Transform:
    """What happens to pixels and texts; recorded in the manifest."""

    size: int
    bits: int
    text: str


@dataclass(frozen=True)
class ShardJob:
    """The studies of one shard and where it goes. ``key`` is the pseudonym key: in memory only."""

    shard: Path
    report: Path
    """Written last, with the manifest's row and the rejects: where it is, the shard is finished."""
    source: str
    records: tuple[StudyRecord, ...]
    transform: Transform
    key: bytes


def run_shard_job(job: ShardJob) -> Path:
    """Write the shard, then its report; returns the report's path."""
    rejects: list[dict[str, Any]] = []
    row = write_shard(job.shard, _samples(job, rejects))
    write_json(job.report, {"row": row, "rejects": rejects})
    return job.report


def _samples(job: ShardJob, rejects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for record in job.records:
        study = pseudonym(job.key, "study", record.study_id)
        members: dict[str, bytes] = {}
        views: list[str] = []
        for number, view in enumerate(record.views):
            try:
                film = read_film(view.path, job.transform.size)
            except UnreadableImage as error:
                # The path stays on this machine (it may hold a name); the table of rejects has the pseudonym.
                rejects.append({"study_id": study, "view": number, "reason": error.reason, "path": str(view.path)})
                continue
            members[f"{len(views)}.png"] = encode_png(_quantize(film.pixels, job.transform.bits))
            views.append(view.position or film.view)
        if views:
            members["json"] = encode_info(_info(job, record, study, views))
            yield study, members


def _quantize(pixels: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] -> uint8 or uint16, rounded."""
    top = 2**bits - 1
    return (pixels * top + 0.5).astype(np.uint16 if bits > 8 else np.uint8)


def _info(job: ShardJob, record: StudyRecord, study: str, views: list[str]) -> dict[str, Any]:
    sections = _sections(record)
    text = training_text(sections, job.transform.text)
    labels = record.labels
    if labels is None:
        whole = " ".join(sections.get(name, "") for name in ("findings", "impression")).strip()
        labels = label_report(whole) if whole else {}
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
    }


def _sections(record: StudyRecord) -> dict[str, str]:
    """Findings and impression; a note without headers is taken as findings, since it describes the image."""
    if record.findings is not None or record.impression is not None:
        return {"findings": record.findings or "", "impression": record.impression or ""}
    sections = split_sections(record.report)
    if not sections.keys() & {"findings", "impression"}:
        sections["findings"] = sections.get(LAST_PARAGRAPH) or sections.get(FULL_REPORT, "")
    return sections
