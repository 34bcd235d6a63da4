"""Resizing: turn an image upright (EXIF), make its pixels square, fit it to the square of the training size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray
from PIL import Image

from medunifier.data.images.pixels import check_size

_MIN_ASPECT_ERROR = 0.01
"""Pixels whose sides differ by at most 1 % count as square: spacings are rounded, and so is every resized image."""

# Orientation of EXIF: quarter turns counter-clockwise, then whether mirrored left to right.
_ORIENTATIONS = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}

Fit = Literal["pad", "crop"]
"""pad: the whole image, padded with black to a square. crop: the largest central square."""


@dataclass(frozen=True)
class Geometry:
    """How stored pixels become an upright image with square pixels."""

    orientation: int = 1
    """Orientation of EXIF, 1 to 8; 1 is upright."""
    aspect: float = 1.0
    """Height / width of a pixel."""

    def apply(self, pixels: ndarray) -> ndarray:
        """Turn or mirror the image, then enlarge the dimension along which its pixels are longer.

        Args:
            pixels: (H, W) float32 in [0, 1].

        Returns:
            Float32 in [0, 1]; the same array if nothing is to be done.

        Raises:
            UnreadableImage: if the result would be too large.
        """
        turns, mirrored = _ORIENTATIONS[self.orientation]
        if turns:
            pixels = np.rot90(pixels, turns)
        if mirrored:
            pixels = pixels[:, ::-1]
        if abs(self.aspect - 1) > _MIN_ASPECT_ERROR:
            rows, columns = pixels.shape
            rows, columns = round(rows * max(self.aspect, 1)), round(columns / min(self.aspect, 1))
            check_size(rows, columns)
            image = Image.fromarray(np.ascontiguousarray(pixels)).resize((columns, rows), Image.Resampling.BICUBIC)
            pixels = np.clip(np.asarray(image), 0.0, 1.0)  # bicubic overshoots at edges
        return np.ascontiguousarray(pixels)


UPRIGHT = Geometry()
"""Upright with square pixels: nothing to be done."""


def fit_square(pixels: ndarray, size: int, fit: Fit = "pad") -> ndarray:
    """Resize to a square, keeping the aspect ratio.

    Args:
        pixels: (H, W) float32 in [0, 1].
        size: side of the result in pixels, at least 1.
        fit: ``pad`` pads the shorter dimension with black, equally on both sides; ``crop`` crops the longer one.

    Returns:
        (size, size) float32 in [0, 1]. Downscaling is anti-aliased (bicubic over the whole footprint of
        each new pixel).
    """
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    pixels = pixels.astype(np.float32, copy=False)
    height, width = pixels.shape
    if (height, width) == (size, size):
        return pixels
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) / 2, (width - side) / 2
        box = (left, top, left + side, top + side)
        square = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box))
        return np.clip(square, 0.0, 1.0)
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(pixels).resize(inner, Image.Resampling.BICUBIC)
    square = np.zeros((size, size), np.float32)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    square[top : top + inner[1], left : left + inner[0]] = np.asarray(small)
    return np.clip(square, 0.0, 1.0, out=square)  # bicubic overshoots at edges
