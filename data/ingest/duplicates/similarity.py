"""Similarity of two images by their thumbnails, to distinguish a copy from a radiograph of another patient.

All chests share coarse grey levels and much of their anatomy. So the comparison uses details (the thumbnail minus
its blur) from which the mean of the archive is subtracted. Two thumbnails are aligned by cropping one of them by up
to 4 % at each side. Brightness, contrast, size, JPEG and a narrow crop then have little effect. docs/data.md measures
how well this separates copies from other images, compared with standard measures.
"""

import numpy as np
from numpy import ndarray

from medunifier.data.ingest.duplicates.fingerprints import CELLS

NEAR = 0.90
"""Minimum correlation of near-duplicates."""
CANDIDATE = 0.90
"""Minimum cosine of two coarse vectors for their thumbnails to be compared."""
COARSE_NORM = 2048
"""Norm of a coarse vector. Its entries are integers, and 2048 squared is below 2 to the 24: the dot product of two is
exact in float32 in any summation order, so the candidates do not depend on the number of threads."""

_COARSE = 16
_BLUR_CELLS = 1.5
_MIN_DETAIL = 2.0  # grey levels: below this, details are rounding noise
_PRIOR = 8  # images: shrinks the mean of a small archive towards 0
_CROP_STEP, _CROP_STEPS = 0.005, 8
_REJECT = 0.65  # correlation after a first step, below which the pair is no copy
_CHUNK = 4096


class ThumbnailSimilarity:
    """Pairwise similarity of the images of one archive.

    Args:
        thumbnails: (N, 64, 64) uint8 of distinct images (exact duplicates would bias the archive's mean).
    """

    def __init__(self, thumbnails: ndarray) -> None:
        self._thumbnails = thumbnails
        common, coarse = np.zeros((CELLS, CELLS)), np.zeros((len(thumbnails), _COARSE, _COARSE), np.float32)
        chunks = [slice(begin, begin + _CHUNK) for begin in range(0, len(thumbnails), _CHUNK)]
        for chunk in chunks:
            block = thumbnails[chunk].astype(np.float32)
            common += _standardize(_details(block, _BLUR)).sum(axis=0, dtype=np.float64)
            side = CELLS // _COARSE
            cells = block.reshape(-1, _COARSE, side, _COARSE, side).mean(axis=(2, 4))
            details = _details(cells, _COARSE_BLUR)
            has_detail = details.std(axis=(1, 2), keepdims=True) >= _MIN_DETAIL
            coarse[chunk] = _standardize(details) * has_detail
        weight = 1 / (len(thumbnails) + _PRIOR)
        self._common = (common * weight).astype(np.float32)
        common_coarse = (coarse.sum(axis=0, dtype=np.float64) * weight).astype(np.float32)
        self.vectors: ndarray = np.zeros((len(thumbnails), _COARSE**2), np.int16)
        """(N, 256) integers, norm 2048; zeros for an image without details, which has no near-duplicates."""
        for chunk in chunks:
            distinctive = _standardize(coarse[chunk] - common_coarse) * coarse[chunk].any(axis=(1, 2), keepdims=True)
            self.vectors[chunk] = np.round(distinctive * COARSE_NORM).reshape(-1, _COARSE**2)

    def correlation(self, first: int, second: int) -> float:
        """Return the correlation of two images' distinctive details at the best crop of one of them, -1 … 1."""
        pair = self._thumbnails[[first, second]].astype(np.float32)
        return max(self._crop_to_match(*pair), self._crop_to_match(*pair[::-1]))

    def _crop_to_match(self, image: ndarray, cropped: ndarray) -> float:
        """Search the best crop of ``image`` by coordinate ascent, in steps of 1 % and then of 0.5 %."""
        target, rows, columns, best = self._distinctive(cropped), 0, 0, -1.0
        for near in (_NEAR_BY_TWO, _NEAR_BY_ONE):
            previous = -2.0
            while best > previous:
                previous = best
                rows, _ = self._best(_CROPS[near[rows]] @ (image @ _CROPS_ACROSS[columns]), target, near[rows])
                across = near[columns]
                columns, best = self._best((_CROPS[rows] @ image) @ _CROPS_ACROSS[across], target, across)
                if best < _REJECT:
                    return best
        return best

    def _best(self, cropped: ndarray, target: ndarray, crops: list[int]) -> tuple[int, float]:
        """Return which of ``crops`` gives the highest correlation with the target, and that correlation."""
        correlations = np.tensordot(self._distinctive(cropped), target, 2)
        return crops[int(correlations.argmax())], float(correlations.max())

    def _distinctive(self, pixels: ndarray) -> ndarray:
        return _standardize(_standardize(_details(pixels, _BLUR)) - self._common)


def _details(pixels: ndarray, blur: ndarray) -> ndarray:
    return pixels - blur @ pixels @ blur.T


def _standardize(pixels: ndarray) -> ndarray:
    """Return the pixels with mean 0 and norm 1 over the last two axes."""
    pixels = pixels - pixels.mean(axis=(-2, -1), keepdims=True)
    return pixels / np.sqrt((pixels * pixels).sum(axis=(-2, -1), keepdims=True) + 1e-9)


def _gaussian(cells: int) -> ndarray:
    distance = np.arange(cells)[:, None] - np.arange(cells)
    weights = np.exp(-0.5 * (distance / _BLUR_CELLS) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _crop(begin: float, end: float) -> ndarray:
    """Return a (64, 64) matrix that averages 64 equal parts of ``begin`` … ``end`` of an axis of length 1."""
    edges, cells = np.linspace(begin, end, CELLS + 1) * CELLS, np.arange(CELLS)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _near_by(steps: int) -> list[list[int]]:
    """Return for each crop the crops that differ by 0 or ``steps`` at either side."""
    by = (0, steps)
    return [
        [n for n, (b, e) in enumerate(_SIDES) if abs(b - begin) in by and abs(e - end) in by] for begin, end in _SIDES
    ]


_BLUR, _COARSE_BLUR = _gaussian(CELLS), _gaussian(_COARSE)
_SIDES = [(begin, end) for begin in range(_CROP_STEPS + 1) for end in range(_CROP_STEPS + 1)]
_CROPS = np.stack([_crop(begin * _CROP_STEP, 1 - end * _CROP_STEP) for begin, end in _SIDES])
_CROPS_ACROSS = _CROPS.transpose(0, 2, 1)
_NEAR_BY_TWO, _NEAR_BY_ONE = _near_by(2), _near_by(1)
