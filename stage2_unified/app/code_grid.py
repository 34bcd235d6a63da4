"""The grid of codes as a picture, and what can be done to a part of it."""

from dataclasses import dataclass

import numpy as np

from medunifier.shared.errors import UserError

GRID_PIXELS = 384
"""About the side of the picture of a grid."""

WAYS = ("one code", "the codes of the other side", "the codes above")
"""What a region can be filled with."""


def picture_of(codes: np.ndarray, codes_in_all: int, region: "Region | None" = None) -> np.ndarray:
    """(h, w) codes -> (H, W, 3) uint8: equal codes have equal colours, a region has a white frame."""
    hue = (codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) & np.uint64(0xFFFFFF)
    light = 64 + 160 * (codes / max(codes_in_all - 1, 1))[..., None]
    tint = np.stack([(hue >> np.uint64(shift)) & np.uint64(0xFF) for shift in (0, 8, 16)], axis=-1).astype(float)
    colours = np.clip(0.5 * light + 0.5 * tint, 0, 255).astype(np.uint8)
    cell = cell_pixels(codes.shape)
    picture = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    picture[::cell] = picture[:, ::cell] = 0
    if region is not None:
        top, left = region.top * cell, region.left * cell
        bottom, right = top + region.height * cell - 1, left + region.width * cell - 1
        picture[top : bottom + 1, [left, right]] = picture[[top, bottom], left : right + 1] = 255
    return picture


def cell_pixels(grid: tuple[int, ...]) -> int:
    """Side of a code in the picture, in pixels."""
    return max(4, GRID_PIXELS // max(grid))


@dataclass(frozen=True)
class Region:
    """A rectangle of codes: its upper left corner, rows and columns."""

    top: int
    left: int
    height: int
    width: int

    def check(self, grid: tuple[int, ...]) -> None:
        """Whether it lies within an (h, w) grid.

        Raises:
            UserError: if not.
        """
        inside = min(self.top, self.left) >= 0 and min(self.height, self.width) >= 1
        if not (inside and self.top + self.height <= grid[0] and self.left + self.width <= grid[1]):
            raise UserError(
                f"the region of {self.height} x {self.width} codes at row {self.top}, column {self.left} does not "
                f"lie within the grid of {grid[0]} x {grid[1]}"
            )


def edited(codes: np.ndarray, region: Region, way: str, code: int, codes_in_all: int) -> np.ndarray:
    """(h, w) codes with a region filled anew.

    Args:
        codes: the grid.
        region: which part.
        way: one of :data:`WAYS`: one code everywhere; what lies there in the mirrored picture; the row above it.
        code: for the first.
        codes_in_all: K.

    Raises:
        UserError: for a region outside the grid, a code outside the codebook, nothing above.
    """
    region.check(codes.shape)
    rows, columns = slice(region.top, region.top + region.height), slice(region.left, region.left + region.width)
    changed = codes.copy()
    if way == WAYS[0]:
        if not 0 <= code < codes_in_all:
            raise UserError(f"the code must be from 0 to {codes_in_all - 1}, got {code}")
        changed[rows, columns] = code
    elif way == WAYS[1]:
        changed[rows, columns] = codes[:, ::-1][rows, columns]
    elif way == WAYS[2]:
        if region.top == 0:
            raise UserError("there is nothing above the first row: choose another region")
        changed[rows, columns] = codes[region.top - 1, columns]
    else:
        raise UserError(f"unknown way {way!r}: choose {', '.join(WAYS)}")
    return changed
