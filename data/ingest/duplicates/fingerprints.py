"""What is kept of a written picture to tell whether it comes again: a digest, and a thumbnail of 64 x 64 cells."""

import hashlib

import numpy as np
from numpy import ndarray
from PIL import Image

CELLS = 64
_PLAIN = 0.02  # of a picture's range: the deviation that JPEG and resizing leave in a line of one shade

FINGERPRINT = np.dtype(
    [("record", "<u4"), ("view", "<u2"), ("image", "<u2"), ("digest", "V32"), ("thumbnail", "u1", (CELLS, CELLS))]
)
"""An image of a shard: number of its study in the shard's job, of its view in the study, of its picture in the
sample (which is lower where views before it were refused), SHA-256 of the pixels, thumbnail."""


def fingerprint(pixels: ndarray, record: int, view: int, image: int) -> ndarray:
    """One entry of :data:`FINGERPRINT` for a written picture, (H, W) uint8 or uint16."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    digest.update(pixels.tobytes())
    return np.array((record, view, image, digest.digest(), thumbnail(pixels)), FINGERPRINT)


def thumbnail(pixels: ndarray) -> ndarray:
    """(64, 64) uint8: the picture without plain margins, averaged, its own range stretched to 0 … 255."""
    inner = _within(pixels, pixels.max(axis=1) > 0, pixels.max(axis=0) > 0)  # what was added for a square is 0
    values = inner.astype(np.float32)
    plain = _PLAIN * np.ptp(values)
    values = _within(values, values.std(axis=1) > plain, values.std(axis=0) > plain)
    means = np.asarray(Image.fromarray(values).resize((CELLS, CELLS), Image.Resampling.BOX))
    spread = max(float(np.ptp(means)), 1e-6)
    return np.round((means - means.min()) * (255 / spread)).astype(np.uint8)


def _within(pixels: ndarray, rows: ndarray, columns: ndarray) -> ndarray:
    """From the first to the last row and column that count; all of them if none does."""
    down, across = np.flatnonzero(rows), np.flatnonzero(columns)
    if not len(down) or not len(across):
        return pixels
    return pixels[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
