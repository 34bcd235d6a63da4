"""Find exact and near-duplicate images in an archive, and those that `--duplicates remove` leaves out.

Every image is compared with every other. For 377,110 images (MIMIC-CXR) these are 7e10 pairs, computed as matrix
products; only candidates are compared pair by pair. The result does not depend on the number of workers.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from medunifier.data.ingest.duplicates.fingerprints import CELLS
from medunifier.data.ingest.duplicates.similarity import CANDIDATE, COARSE_NORM, NEAR, ThumbnailSimilarity
from medunifier.data.records import SPLITS
from medunifier.shared.artifacts import atomic_file
from medunifier.shared.progress import Progress

DUPLICATES = "duplicates.csv"
_ROWS, _COLUMNS = 2048, 8192  # size of one product: 64 MiB


@dataclass(frozen=True, slots=True)
class ShardImage:
    """An image of the shards: its patient, study and position. The ids are pseudonyms."""

    patient: str
    study: str
    view: int
    """Index of the view in its study, in the source's order: as in ``rejects.csv`` and ``--find``."""
    image: int
    """Index of the image in its sample."""
    split: str
    shard: str


@dataclass(frozen=True)
class Duplicate:
    """``image`` repeats ``first``, which is in the same split or a stricter one (test > validate > train)."""

    image: ShardImage
    first: ShardImage
    exact: bool
    distance: float
    """1 - correlation for near-duplicates, 0 for exact ones."""


@dataclass(frozen=True)
class Duplicates:
    """Result of :func:`find_duplicates`."""

    rows: list[Duplicate]
    cross_split: dict[ShardImage, str]
    """Images whose duplicate group extends into a stricter split, and that split. Dropped by `remove`."""

    def counts(self) -> dict[str, int]:
        """Return counts for the manifest: duplicates, and those across splits or patients."""
        return {
            "exact": sum(row.exact for row in self.rows),
            "near": sum(not row.exact for row in self.rows),
            "in_another_split": len(self.cross_split),
            "of_another_patient": sum(row.image.patient != row.first.patient for row in self.rows),
        }


def find_duplicates(
    images: Sequence[ShardImage], digests: Sequence[bytes], thumbnails: Iterable[ndarray]
) -> Duplicates:
    """Find images that repeat others, and those that leak across splits.

    Duplicates form groups (connected components of the similarity graph). A group of n has n - 1 rows, each of which
    links one more image to it: ten thousand similar images make ten thousand rows, not fifty million.

    If a group spans several splits, its images in train are dropped in favour of validate, and both in favour of
    test: evaluation data must be unknown to the model, and must not shrink. This applies to the whole group, also to
    images that are linked to the held-out one only through a third: a missing training image costs little, a leak
    invalidates the evaluation. Within a split nothing is dropped, whether the patients are the same or not: nothing
    leaks there, and which of two reports is correct is unknown. The table lists them.

    Args:
        images: N images, those of test first and those of train last, otherwise in a deterministic order: it decides
            which image of a group is the first.
        digests: N digests of their pixels.
        thumbnails: their thumbnails in blocks of (…, 64, 64) uint8, N in all. Iterated once, so that they need not be
            in memory twice: 377,110 take 1.5 GB.
    """
    strictness = [SPLITS.index(image.split) for image in images]
    if strictness != sorted(strictness, reverse=True):
        raise ValueError("images of stricter splits must come first")
    groups = np.arange(len(images))  # lowest index of each image's group, which is in its strictest split
    rows = []
    for number, first in _exact(digests):
        groups[number] = first
        rows.append(Duplicate(images[number], images[first], True, 0.0))
    unique = np.flatnonzero(groups == np.arange(len(groups)))
    for number, first, distance in _near(_selected(thumbnails, unique)):
        number, first = int(unique[number]), int(unique[first])
        low, high = sorted((groups[number], groups[first]))
        groups[groups == high] = low
        rows.append(Duplicate(images[number], images[first], False, distance))
    cross_split = {
        image: images[group].split
        for image, group in zip(images, groups.tolist(), strict=True)
        if image.split != images[group].split
    }
    return Duplicates(rows, cross_split)


def _selected(blocks: Iterable[ndarray], numbers: ndarray) -> ndarray:
    """Return the thumbnails with these ascending ``numbers`` from the blocks: (len(numbers), 64, 64) uint8."""
    selected, begin, done = np.empty((len(numbers), CELLS, CELLS), np.uint8), 0, 0
    for block in blocks:
        end = int(np.searchsorted(numbers, begin + len(block)))
        selected[done:end] = block[numbers[done:end] - begin]
        begin, done = begin + len(block), end
    return selected


def _exact(digests: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (index, index of the first image with the same digest)."""
    first_index: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        first = first_index.setdefault(digest, number)
        if first != number:
            yield number, first


def _near(thumbnails: ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield (index, lower index, distance) of near-duplicates; pairs already in one group are skipped."""
    similarity, groups = ThumbnailSimilarity(thumbnails), np.arange(len(thumbnails))
    vectors = similarity.vectors
    with Progress(len(thumbnails), "compare", "images") as progress:
        for row in range(0, len(vectors), _ROWS):
            block = vectors[row : row + _ROWS].astype(np.float32)
            for column in range(row, len(vectors), _COLUMNS):
                products = block @ vectors[column : column + _COLUMNS].astype(np.float32).T
                firsts, numbers = np.nonzero(products >= CANDIDATE * COARSE_NORM**2)
                firsts, numbers = firsts + row, numbers + column
                ungrouped = (firsts < numbers) & (groups[firsts] != groups[numbers])
                for first, number in zip(firsts[ungrouped].tolist(), numbers[ungrouped].tolist(), strict=True):
                    if groups[first] == groups[number]:
                        continue
                    correlation = similarity.correlation(first, number)
                    if correlation >= NEAR:
                        groups[groups == groups[number]] = groups[first]
                        yield number, first, round(1 - correlation, 4)
            progress.advance(len(block))


def write_duplicates(path: Path, duplicates: Duplicates) -> None:
    """Write ``duplicates.csv``: a row per image that repeats another, with pseudonyms and no path."""
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["study_id", "view", "split"]
        writer.writerow(["kind", *columns, *(f"first_{name}" for name in columns), "same_patient", "distance"])
        for row in duplicates.rows:
            image, first = row.image, row.first
            writer.writerow(
                ["exact" if row.exact else "near", image.study, image.view, image.split, first.study, first.view]
                + [first.split, "yes" if image.patient == first.patient else "no", row.distance]
            )
