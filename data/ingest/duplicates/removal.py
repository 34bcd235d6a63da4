"""Pictures taken out of finished shards: what is left is what would be there had they been refused on reading.

A shard that loses a picture is written again under `.ingest`, and takes its old place only when all of them are
there. So a kill at any moment leaves shards that the same command can finish: each step looks at what is done.
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
    """One shard, and the pictures that it is to lose, as (study's pseudonym, number of the picture)."""

    shard: Path
    without: Path
    """Where the new shard waits."""
    report: Path
    """Written last, with the manifest's row."""
    removed: frozenset[tuple[str, int]]


def removal_jobs(pictures: Sequence[ShardImage], out: Path, folder: Path) -> list[RemovalJob]:
    """A job for each shard of ``out`` that loses a picture; what they write waits in ``folder``."""
    removed = defaultdict(set)
    for picture in pictures:
        removed[picture.shard].add((picture.study, picture.image))
    return [
        RemovalJob(out / name, folder / name, folder / f"{name}.json", frozenset(removed[name]))
        for name in sorted(removed)
    ]


def run_removal_job(job: RemovalJob) -> Path:
    """Write the shard without its pictures, then the report; returns the report's path."""
    write_json(job.report, {"row": write_shard(job.without, _samples(job))})
    return job.report


def replace_shards(jobs: Sequence[RemovalJob]) -> None:
    """The new shards, all of them written, take the places of the old. Some may have done so before a kill."""
    for job in jobs:
        for new, old in ((job.without, job.shard), (index_path(job.without), index_path(job.shard))):
            if new.exists():
                os.replace(new, old)


def _samples(job: RemovalJob) -> Iterator[tuple[str, dict[str, bytes]]]:
    for study, members in read_samples(job.shard):
        info = parse_json(members["json"], job.shard, "a study")
        left = [number for number in range(len(info["views"])) if (study, number) not in job.removed]
        if left:
            info["views"] = [info["views"][number] for number in left]
            kept = {
                f"{place}.{name.partition('.')[2]}": content  # the picture, then its masks
                for place, number in enumerate(left)
                for name, content in members.items()
                if name.partition(".")[0] == str(number)
            }
            yield study, {**kept, "json": encode_info(info)}
