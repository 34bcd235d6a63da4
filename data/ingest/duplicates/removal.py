"""Remove images from finished shards; the result equals shards from which they had been refused on reading.

Each affected shard is rewritten under `.ingest`, and the originals are replaced only when all are written. So after a
kill at any moment the same command can finish: each step checks what is already done.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medunifier.data.ingest.duplicates.search import ShardImage
from medunifier.data.shards.dataset import encode_info, write_shard
from medunifier.data.shards.index import index_path, read_samples
from medunifier.shared.artifacts import write_json
from medunifier.shared.files.input_files import parse_json


@dataclass(frozen=True)
class RemovalJob:
    """One shard, and the images to remove from it, as (study pseudonym, index of the image)."""

    shard: Path
    without: Path
    """Temporary path of the rewritten shard."""
    report: Path
    """Written last, with the manifest's row."""
    removed: frozenset[tuple[str, int]]


def removal_jobs(images: Sequence[ShardImage], out: Path, folder: Path) -> list[RemovalJob]:
    """Return a job for each shard of ``out`` with an image to remove; the jobs write to ``folder``."""
    removed = defaultdict(set)
    for image in images:
        removed[image.shard].add((image.study, image.image))
    return [
        RemovalJob(out / name, folder / name, folder / f"{name}.json", frozenset(removed[name]))
        for name in sorted(removed)
    ]


def run_removal_job(job: RemovalJob) -> Path:
    """Write the shard without the removed images, then the report, and return the report's path."""
    write_json(job.report, {"row": write_shard(job.without, _samples(job))})
    return job.report


def replace_shards(jobs: Sequence[RemovalJob]) -> None:
    """Replace the original shards by the rewritten ones. Some may have been replaced before a kill."""
    for job in jobs:
        for new, old in ((job.without, job.shard), (index_path(job.without), index_path(job.shard))):
            if new.exists():
                os.replace(new, old)


def _samples(job: RemovalJob) -> Iterator[tuple[str, dict[str, bytes]]]:
    for study, members in read_samples(job.shard):
        info = parse_json(members["json"], job.shard, "a study")
        remaining = [number for number in range(len(info["views"])) if (study, number) not in job.removed]
        if remaining:
            info["views"] = [info["views"][number] for number in remaining]
            kept = {
                f"{index}.{name.partition('.')[2]}": content  # the image, then its masks
                for index, number in enumerate(remaining)
                for name, content in members.items()
                if name.partition(".")[0] == str(number)
            }
            yield study, {**kept, "json": encode_info(info)}
