"""Image fingerprints for the duplicate search: a digest of the pixels and a 64 x 64 thumbnail."""

import hashlib

import numpy as np
from numpy import ndarray
from PIL import Image

CELLS = 64
_FLAT = 0.02  # fraction of an image's range: the deviation that JPEG and resizing leave in a line of uniform grey

FINGERPRINT = np.dtype(
    [("record", "<u4"), ("view", "<u2"), ("image", "<u2"), ("digest", "V32"), ("thumbnail", "u1", (CELLS, CELLS))]
)
"""Fingerprint of an image of a shard: index of its study in the shard's job, of its view in the study, of the image
in the sample (lower than the view's if earlier views were refused), SHA-256 of the pixels, thumbnail."""


def fingerprint(pixels: ndarray, record: int, view: int, image: int) -> ndarray:
    """Return the :data:`FINGERPRINT` of a written image, (H, W) uint8 or uint16."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    digest.update(pixels.tobytes())
    return np.array((record, view, image, digest.digest(), thumbnail(pixels)), FINGERPRINT)


def thumbnail(pixels: ndarray) -> ndarray:
    """Return a (64, 64) uint8 thumbnail: uniform margins cropped, box-averaged, its range stretched to 0 … 255."""
    inner = _crop(pixels, pixels.max(axis=1) > 0, pixels.max(axis=0) > 0)  # padding is 0
    values = inner.astype(np.float32)
    threshold = _FLAT * np.ptp(values)
    values = _crop(values, values.std(axis=1) > threshold, values.std(axis=0) > threshold)
    means = np.asarray(Image.fromarray(values).resize((CELLS, CELLS), Image.Resampling.BOX))
    spread = max(float(np.ptp(means)), 1e-6)
    return np.round((means - means.min()) * (255 / spread)).astype(np.uint8)


def _crop(pixels: ndarray, rows: ndarray, columns: ndarray) -> ndarray:
    """Crop from the first to the last selected row and column; return all pixels if none is selected."""
    down, across = np.flatnonzero(rows), np.flatnonzero(columns)
    if not len(down) or not len(across):
        return pixels
    return pixels[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
