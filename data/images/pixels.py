"""Checks and resizing of pixels, for every file format: size limits, geometry, fitting to a square."""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from numpy import ndarray
from PIL import Image

from medunifier.shared.errors import UserError

SMALLEST_SIDE = 16
LARGEST_SIDE = 16_384
MAX_PIXELS = 2**26
"""67 million: four times the largest chest radiograph encountered (4248 x 3480)."""

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


class UnreadableImage(UserError):
    """An image file is refused. `reason` is short, contains no path, and is the same for similar cases."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.reason,)


def check_size(rows: int, columns: int) -> None:
    """Refuse sizes that no radiograph has, before memory is allocated.

    Raises:
        UnreadableImage: below 16 or above 16,384 pixels per side, or above 67 million pixels.
    """
    if min(rows, columns) < SMALLEST_SIDE:
        raise UnreadableImage(f"too small: {rows} x {columns} pixels, expected at least {SMALLEST_SIDE} per side")
    if max(rows, columns) > LARGEST_SIDE or rows * columns > MAX_PIXELS:
        raise UnreadableImage(f"too large: {rows} x {columns} pixels, expected at most {MAX_PIXELS}")


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


def decode_png(content: bytes | memoryview) -> ndarray:
    """Decode the PNG of a shard to (H, W) uint8 or uint16.

    Raises:
        ValueError: if it is damaged, not 8- or 16-bit grey, or above 67 million pixels.
    """
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in ("L", "I;16") or image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels of mode {image.mode}")
            return np.asarray(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, … on damaged files
        raise ValueError(f"not readable as a grey PNG: {error}") from error


def check_not_constant(pixels: ndarray) -> None:
    """Refuse an image without content.

    Raises:
        UnreadableImage: if all pixels are equal.
    """
    if pixels.min() == pixels.max():
        raise UnreadableImage("constant image: all pixels are equal")


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
