"""Radiographs as floats in [0, 1] to the grey levels of a file."""

import numpy as np


def to_grey_levels(pixels: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] floats -> uint8 for at most 8 bits, else uint16: clipped, times 2^bits - 1, rounded to nearest."""
    return (np.clip(pixels, 0, 1) * (2**bits - 1) + 0.5).astype(np.uint16 if bits > 8 else np.uint8)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """[0, 1] floats -> uint8, clipped and rounded to nearest."""
    return to_grey_levels(pixels, 8)
