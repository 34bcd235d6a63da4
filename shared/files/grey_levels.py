"""Convert images in [0, 1] to the integer grey levels of a file."""

import numpy as np


def to_grey_levels(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Return uint8 (at most 8 bits) or uint16 grey levels: clip to [0, 1], scale by 2^bits - 1, round to nearest."""
    return (np.clip(pixels, 0, 1) * (2**bits - 1) + 0.5).astype(np.uint16 if bits > 8 else np.uint8)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 grey levels of floats in [0, 1], clipped and rounded to nearest."""
    return to_grey_levels(pixels, 8)
