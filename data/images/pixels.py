"""Checks of pixels for every file format: sizes, content, the PNG of a shard."""

from io import BytesIO

import numpy as np
from numpy import ndarray
from PIL import Image

from medunifier.shared.errors import UserError

SMALLEST_SIDE = 16
LARGEST_SIDE = 16_384
MAX_PIXELS = 2**26
"""67 million: four times the largest chest radiograph encountered (4248 x 3480)."""


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
