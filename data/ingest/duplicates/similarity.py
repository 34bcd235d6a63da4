"""How like two pictures are, by their thumbnails: whether one is a copy of the other or the chest of somebody else.

All chests share their coarse shades and much of their build. So the details are compared (the thumbnail less its
own blur), and of them what is not common to all pictures of the archive. Two thumbnails are laid on each other by
cutting one of them by up to 4 % at each side. Brightness, contrast, size, JPEG and a narrow crop then change little.
What this separates is measured in docs/data.md, beside standard measures with one threshold, which it replaces.
"""

import numpy as np
from numpy import ndarray

from medunifier.data.ingest.duplicates.fingerprints import CELLS

NEAR = 0.90
"""Least likeness of near-duplicates."""
CANDIDATE = 0.90
"""Least cosine of two coarse vectors whose thumbnails are compared at all."""
COARSE_NORM = 2048
"""Length of a coarse vector. Its entries are whole numbers, and 2048 squared is below 2 to the 24: the product of
two is exact in float32 in whatever order it is summed, so one, two or many threads find the same candidates."""

_COARSE = 16
_BLUR_CELLS = 1.5
_LEAST_DETAIL = 2.0  # grey levels: below, a thumbnail shows its own rounding
_PRIOR = 8  # pictures: the mean of a few says little of what all share
_CUT_STEP, _CUT_STEPS = 0.005, 8
_HOPELESS = 0.65  # after a first step: what lies further off is no copy
_CHUNK = 4096


class ThumbnailSimilarity:
    """Compares the pictures of one archive.

    Args:
        thumbnails: (N, 64, 64) uint8 of pictures that differ (equal ones would pass for what all share).
    """

    def __init__(self, thumbnails: ndarray) -> None:
        self._thumbnails = thumbnails
        common, coarse = np.zeros((CELLS, CELLS)), np.zeros((len(thumbnails), _COARSE, _COARSE), np.float32)
        chunks = [slice(begin, begin + _CHUNK) for begin in range(0, len(thumbnails), _CHUNK)]
        for chunk in chunks:
            some = thumbnails[chunk].astype(np.float32)
            common += _standard(_details(some, _BLUR)).sum(axis=0, dtype=np.float64)
            side = CELLS // _COARSE
            cells = some.reshape(-1, _COARSE, side, _COARSE, side).mean(axis=(2, 4))
            details = _details(cells, _COARSE_BLUR)
            seen = details.std(axis=(1, 2), keepdims=True) >= _LEAST_DETAIL
            coarse[chunk] = _standard(details) * seen
        weight = 1 / (len(thumbnails) + _PRIOR)
        self._common = (common * weight).astype(np.float32)
        shared = (coarse.sum(axis=0, dtype=np.float64) * weight).astype(np.float32)
        self.vectors: ndarray = np.zeros((len(thumbnails), _COARSE**2), np.int16)
        """(N, 256) whole numbers, length 2048; zeros for a picture without details, which is like no other."""
        for chunk in chunks:
            own = _standard(coarse[chunk] - shared) * coarse[chunk].any(axis=(1, 2), keepdims=True)
            self.vectors[chunk] = np.round(own * COARSE_NORM).reshape(-1, _COARSE**2)

    def of(self, first: int, second: int) -> float:
        """Correlation of the two pictures' own details at the best cut of one of them, -1 … 1."""
        pair = self._thumbnails[[first, second]].astype(np.float32)
        return max(self._cut_to_match(*pair), self._cut_to_match(*pair[::-1]))

    def _cut_to_match(self, whole: ndarray, part: ndarray) -> float:
        """Climbs from the uncut picture, one axis after the other, by 1 % and then by half a per cent."""
        target, rows, columns, best = self._own(part), 0, 0, -1.0
        for near in (_NEAR_BY_TWO, _NEAR_BY_ONE):
            before = -2.0
            while best > before:
                before = best
                rows, _ = self._best(_CUTS[near[rows]] @ (whole @ _CUTS_ACROSS[columns]), target, near[rows])
                across = near[columns]
                columns, best = self._best((_CUTS[rows] @ whole) @ _CUTS_ACROSS[across], target, across)
                if best < _HOPELESS:
                    return best
        return best

    def _best(self, tried: ndarray, target: ndarray, cuts: list[int]) -> tuple[int, float]:
        """Of the pictures that these cuts give, the cut of the one most like the target, and how like it is."""
        found = np.tensordot(self._own(tried), target, 2)
        return cuts[int(found.argmax())], float(found.max())

    def _own(self, pixels: ndarray) -> ndarray:
        return _standard(_standard(_details(pixels, _BLUR)) - self._common)


def _details(pixels: ndarray, blur: ndarray) -> ndarray:
    return pixels - blur @ pixels @ blur.T


def _standard(pixels: ndarray) -> ndarray:
    """Mean 0 and length 1 over the last two axes."""
    pixels = pixels - pixels.mean(axis=(-2, -1), keepdims=True)
    return pixels / np.sqrt((pixels * pixels).sum(axis=(-2, -1), keepdims=True) + 1e-9)


def _gaussian(cells: int) -> ndarray:
    distance = np.arange(cells)[:, None] - np.arange(cells)
    weights = np.exp(-0.5 * (distance / _BLUR_CELLS) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cut(begin: float, end: float) -> ndarray:
    """(64, 64): means of 64 equal parts of the span ``begin`` … ``end`` of an axis of length 1."""
    edges, cells = np.linspace(begin, end, CELLS + 1) * CELLS, np.arange(CELLS)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _near_by(steps: int) -> list[list[int]]:
    """For each cut those that differ by 0 or ``steps`` at either side."""
    by = (0, steps)
    return [
        [n for n, (b, e) in enumerate(_SIDES) if abs(b - begin) in by and abs(e - end) in by] for begin, end in _SIDES
    ]


_BLUR, _COARSE_BLUR = _gaussian(CELLS), _gaussian(_COARSE)
_SIDES = [(begin, end) for begin in range(_CUT_STEPS + 1) for end in range(_CUT_STEPS + 1)]
_CUTS = np.stack([_cut(begin * _CUT_STEP, 1 - end * _CUT_STEP) for begin, end in _SIDES])
_CUTS_ACROSS = _CUTS.transpose(0, 2, 1)
_NEAR_BY_TWO, _NEAR_BY_ONE = _near_by(2), _near_by(1)
