"""The same picture twice in an archive: which images repeat which, and which `--duplicates remove` leaves out.

Every image is compared with every other. For 377,110 images (MIMIC-CXR) these are 7e10 pairs, as products of
matrices; what they let through is looked at pair by pair. Nothing here depends on how the work was shared out.
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
_ROWS, _COLUMNS = 2048, 8192  # of one product: 64 MiB


@dataclass(frozen=True, slots=True)
class ShardImage:
    """An image of the shards: whose it is, where it lies. The ids are pseudonyms."""

    patient: str
    study: str
    view: int
    """Number of the view in its study, as the source counts: that of ``rejects.csv`` and ``--find``."""
    image: int
    """Number of the picture in its sample."""
    split: str
    shard: str


@dataclass(frozen=True)
class Duplicate:
    """``picture`` repeats ``first``, which stands in the same split or in one that is held out more strictly."""

    picture: ShardImage
    first: ShardImage
    exact: bool
    distance: float
    """1 - correlation of near-duplicates, 0 of exact ones."""


@dataclass(frozen=True)
class Duplicates:
    """What was found."""

    rows: list[Duplicate]
    cross_split: dict[ShardImage, str]
    """Pictures whose group has one in a split before which their own gives way, and that split."""

    def counts(self) -> dict[str, int]:
        """For the manifest: pictures that repeat another, and of those the ones that matter."""
        return {
            "exact": sum(row.exact for row in self.rows),
            "near": sum(not row.exact for row in self.rows),
            "in_another_split": len(self.cross_split),
            "of_another_patient": sum(row.picture.patient != row.first.patient for row in self.rows),
        }


def find_duplicates(
    pictures: Sequence[ShardImage], digests: Sequence[bytes], thumbnails: Iterable[ndarray]
) -> Duplicates:
    """Which pictures repeat others, and which of them give way.

    Pictures that are alike make a group, also where two of them are alike only by way of a third. A group of n has
    n - 1 rows, each of which ties one more to it: ten thousand like pictures make ten thousand rows, and not fifty
    million.

    Where a group stands in several splits, train gives way to validate and both to test: what a model is judged by
    must be unknown to it, and must not shrink because somebody trains. The whole group goes, though some of it be
    like the held-out picture only by way of a third: a picture too few in train costs little, a leak the evaluation.
    Within a split nothing gives way, whoever the patients are: nothing leaks there, and which of two reports is the
    right one cannot be told. The table names them.

    Args:
        pictures: N pictures, those of test first and those of train last, else in an order that does not depend on
            chance: it decides which of a group is the first.
        digests: N digests of their pixels.
        thumbnails: theirs in blocks of (…, 64, 64) uint8, N in all. Read once, so that they need not all be in memory
            twice: 377,110 are 1.5 GB.
    """
    strictness = [SPLITS.index(picture.split) for picture in pictures]
    if strictness != sorted(strictness, reverse=True):
        raise ValueError("pictures of stricter splits must come first")
    groups = np.arange(len(pictures))  # the lowest number of the group that each is in: the strictest split's
    rows = []
    for number, first in _exact(digests):
        groups[number] = first
        rows.append(Duplicate(pictures[number], pictures[first], True, 0.0))
    different = np.flatnonzero(groups == np.arange(len(groups)))
    for number, first, distance in _near(_selected(thumbnails, different)):
        number, first = int(different[number]), int(different[first])
        low, high = sorted((groups[number], groups[first]))
        groups[groups == high] = low
        rows.append(Duplicate(pictures[number], pictures[first], False, distance))
    cross_split = {
        picture: pictures[group].split
        for picture, group in zip(pictures, groups.tolist(), strict=True)
        if picture.split != pictures[group].split
    }
    return Duplicates(rows, cross_split)


def _selected(blocks: Iterable[ndarray], numbers: ndarray) -> ndarray:
    """(len(numbers), 64, 64) uint8: these, in rising order, of all that the blocks hold."""
    selected, begin, done = np.empty((len(numbers), CELLS, CELLS), np.uint8), 0, 0
    for block in blocks:
        end = int(np.searchsorted(numbers, begin + len(block)))
        selected[done:end] = block[numbers[done:end] - begin]
        begin, done = begin + len(block), end
    return selected


def _exact(digests: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """(number, number of the first with the same digest)."""
    seen: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        first = seen.setdefault(digest, number)
        if first != number:
            yield number, first


def _near(thumbnails: ndarray) -> Iterator[tuple[int, int, float]]:
    """(number, lower number, distance) of near-duplicates; pairs that others tie together already are passed over."""
    likeness, groups = ThumbnailSimilarity(thumbnails), np.arange(len(thumbnails))
    vectors = likeness.vectors
    with Progress(len(thumbnails), "compare", "images") as progress:
        for row in range(0, len(vectors), _ROWS):
            block = vectors[row : row + _ROWS].astype(np.float32)
            for column in range(row, len(vectors), _COLUMNS):
                products = block @ vectors[column : column + _COLUMNS].astype(np.float32).T
                firsts, numbers = np.nonzero(products >= CANDIDATE * COARSE_NORM**2)
                firsts, numbers = firsts + row, numbers + column
                untied = (firsts < numbers) & (groups[firsts] != groups[numbers])
                for first, number in zip(firsts[untied].tolist(), numbers[untied].tolist(), strict=True):
                    if groups[first] == groups[number]:
                        continue
                    correlation = likeness.of(first, number)
                    if correlation >= NEAR:
                        groups[groups == groups[number]] = groups[first]
                        yield number, first, round(1 - correlation, 4)
            progress.advance(len(block))


def write_duplicates(path: Path, duplicates: Duplicates) -> None:
    """``duplicates.csv``: a row a picture that repeats another; pseudonyms, no path."""
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ["study_id", "view", "split"]
        writer.writerow(["kind", *names, *(f"first_{name}" for name in names), "same_patient", "distance"])
        for row in duplicates.rows:
            this, first = row.picture, row.first
            writer.writerow(
                ["exact" if row.exact else "near", this.study, this.view, this.split, first.study, first.view]
                + [first.split, "yes" if this.patient == first.patient else "no", row.distance]
            )
