"""Show the code grid as an image, and edit a region of it."""

from dataclasses import dataclass

import numpy as np

from medunifier.shared.errors import UserError

GRID_PIXELS = 384
"""Approximate side length of the rendered grid."""

WAYS = ("one code", "the codes of the other side", "the codes above")
"""How a region can be filled. These values are part of the HTTP API."""


def render_codes(codes: np.ndarray, codebook_size: int, region: "Region | None" = None) -> np.ndarray:
    """Render (h, w) codes as (H, W, 3) uint8: equal codes have equal colours, a region has a white frame."""
    hue = (codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) & np.uint64(0xFFFFFF)
    light = 64 + 160 * (codes / max(codebook_size - 1, 1))[..., None]
    tint = np.stack([(hue >> np.uint64(shift)) & np.uint64(0xFF) for shift in (0, 8, 16)], axis=-1).astype(float)
    colours = np.clip(0.5 * light + 0.5 * tint, 0, 255).astype(np.uint8)
    cell = cell_pixels(codes.shape)
    canvas = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    canvas[::cell] = canvas[:, ::cell] = 0
    if region is not None:
        top, left = region.top * cell, region.left * cell
        bottom, right = top + region.height * cell - 1, left + region.width * cell - 1
        canvas[top : bottom + 1, [left, right]] = canvas[[top, bottom], left : right + 1] = 255
    return canvas


def marked_codes(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mark the codes of high value in red on an image.

    Args:
        pixels: (S, S) in [0, 1].
        values: (h, w); from the median, where nothing is marked, to the maximum.

    Returns:
        (S, S, 3) uint8.
    """
    low, high = float(np.median(values)), float(values.max())
    strength = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(pixels.shape, values.shape, strict=True))
    opacity = 0.6 * strength[rows][:, columns, None]
    colour = pixels[..., None] * (1 - opacity) + np.array([1.0, 0.1, 0.1]) * opacity
    return (colour * 255).round().astype(np.uint8)


def cell_pixels(grid: tuple[int, ...]) -> int:
    """Return the side length of a rendered code, in pixels."""
    return max(4, GRID_PIXELS // max(grid))


@dataclass(frozen=True)
class Region:
    """A rectangle of codes: upper left corner, height and width."""

    top: int
    left: int
    height: int
    width: int

    def check(self, grid: tuple[int, ...]) -> None:
        """Check that the region lies within an (h, w) grid.

        Raises:
            UserError: if it does not.
        """
        inside = min(self.top, self.left) >= 0 and min(self.height, self.width) >= 1
        if not (inside and self.top + self.height <= grid[0] and self.left + self.width <= grid[1]):
            raise UserError(
                f"the region of {self.height} x {self.width} codes at row {self.top}, column {self.left} does not "
                f"lie within the grid of {grid[0]} x {grid[1]}"
            )


def edited(codes: np.ndarray, region: Region, way: str, code: int, codebook_size: int) -> np.ndarray:
    """Return (h, w) codes with a region replaced.

    Args:
        codes: the grid.
        region: the region to replace.
        way: one of :data:`WAYS`: a single code; the codes of the mirrored image; copies of the row above.
        code: the code for the first way.
        codebook_size: K.

    Raises:
        UserError: if the region is outside the grid, the code is outside the codebook, or there is no row above.
    """
    region.check(codes.shape)
    rows, columns = slice(region.top, region.top + region.height), slice(region.left, region.left + region.width)
    changed = codes.copy()
    if way == WAYS[0]:
        if not 0 <= code < codebook_size:
            raise UserError(f"the code must be from 0 to {codebook_size - 1}, got {code}")
        changed[rows, columns] = code
    elif way == WAYS[1]:
        changed[rows, columns] = codes[:, ::-1][rows, columns]
    elif way == WAYS[2]:
        if region.top == 0:
            raise UserError("there is no row above the first row: choose another region")
        changed[rows, columns] = codes[region.top - 1, columns]
    else:
        raise UserError(f"unknown way {way!r}: choose {', '.join(WAYS)}")
    return changed
