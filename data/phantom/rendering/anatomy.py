"""Geometry of a frontal chest radiograph: signed distances to the borders of lungs, heart, ribs and diaphragm.

Coordinates: x runs from -1 (image left, the patient's right) to 1, y from -1 (top) to 1. Outlines are
functions of x or y alone wherever anatomy allows, so that computing them costs a row or a column and not an image.
Distances are in the same units and positive inside.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray

from medunifier.data.phantom.state import Side, State

SIGN: dict[Side, float] = {"right": -1.0, "left": 1.0}

LUNG_TOP = -0.80
LUNG_WIDEST = 0.10
APEX = 0.36  # |x| of the lung's tip
CARINA = -0.22


@dataclass(frozen=True)
class Grid:
    """Pixel centers of a square image."""

    x: ndarray
    """(1, W)"""
    y: ndarray
    """(H, 1)"""
    pixel: float
    """Width of a pixel."""

    def soft(self, distance: ndarray, width: float = 0.0) -> ndarray:
        """Return 0 outside, 1 inside, with an anti-aliased edge at least as wide as a pixel."""
        # Half of the rendering time is spent here, hence the in-place operations on one array.
        t = distance / max(width, 1.2 * self.pixel)
        t += 0.5
        np.maximum(t, 0.0, out=t)
        np.minimum(t, 1.0, out=t)
        slope = t * -2.0
        slope += 3.0
        t *= t
        t *= slope
        return t


@lru_cache(maxsize=4)
def grid(size: int) -> Grid:
    """Return the grid of a (size, size) image."""
    centers = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return Grid(centers[None, :], centers[:, None], 2.0 / size)


@dataclass(frozen=True)
class Frame:
    """Parameters of a study's anatomy as projected on one image."""

    chest: float
    dome: dict[Side, float]
    """y of the top of each hemidiaphragm."""
    heart_right: float
    heart_left: float
    """Extent of the heart to either side of the midline."""
    clavicle: float
    """y of the clavicles' medial ends."""

    def ratio(self) -> float:
        """Return the cardiothoracic ratio of this image."""
        return (self.heart_right + self.heart_left) / (2 * self.chest)


# Cardiothoracic ratio by grade; mild cardiomegaly stays clear of the widest normal heart.
_HEART_GRADES = (0.0, 0.60, 0.67, 0.74)


def frame(state: State) -> Frame:
    """Return the projected anatomy: AP magnifies the heart and raises the clavicles, low volume the diaphragm."""
    anatomy = state.anatomy
    ap = state.position == "AP"
    ratio = anatomy.heart_ratio + 0.03 * ap
    if state.heart:
        ratio = _HEART_GRADES[state.heart] + (anatomy.heart_ratio - 0.43) * 0.5 + 0.01 * ap
    width = ratio * 2 * anatomy.chest
    # Most of the heart lies left of the midline.
    left_fraction = 0.70 if not state.heart else 0.67
    breath = 0.30 if state.low_volume else 0.0
    dome: dict[Side, float] = {"right": 0.40 - breath, "left": 0.47 - breath}
    if anatomy.raised:
        dome[anatomy.raised] -= 0.24
    return Frame(
        chest=anatomy.chest,
        dome=dome,
        heart_right=width * (1 - left_fraction),
        heart_left=width * left_fraction,
        clavicle=(-0.66 if ap else -0.50) + anatomy.shoulder,
    )


@dataclass(frozen=True)
class Outlines:
    """Borders of the lungs on a grid. On either side the lateral coordinate u = |x| grows towards the ribs."""

    u: ndarray
    """(1, W) |x|"""
    outer: ndarray
    """(H, 1) |x| of the ribs' inner edge."""
    inner: ndarray
    """(H, 1) |x| of the mediastinum's edge."""
    floor: ndarray
    """(1, W) y of the diaphragm."""
    lung: ndarray
    """(H, W) distance inside the lung fields, heart not yet subtracted."""


def pleura(y: ndarray, top: float, chest: float) -> tuple[ndarray, ndarray]:
    """Return |x| of the outer and inner border of a lung at heights y, for a lung whose apex is at `top`."""
    above = np.clip((LUNG_WIDEST - y) / (LUNG_WIDEST - top), 0.0, 1.0)
    below = np.clip(y - LUNG_WIDEST, 0.0, None)
    spread = np.sqrt(1.0 - above**3.0)  # 0 at the apex, 1 at the widest level
    outer = APEX + (chest - 0.035 * below**2 - APEX) * spread
    return outer, APEX - (APEX - 0.105) * np.sqrt(1.0 - above**9.0)


def outlines(g: Grid, f: Frame) -> Outlines:
    """Return the lung outlines: a rounded apex, a chest wall that tapers below, a mediastinum, a domed diaphragm."""
    u = np.abs(g.x)
    outer, inner = pleura(g.y, LUNG_TOP, f.chest)
    # Behind the heart the two hemidiaphragms are blended without a step.
    mix = g.soft(g.x, 0.30)
    floor = f.dome["right"] * (1 - mix) + f.dome["left"] * mix + 3.5 * np.clip(u - 0.40, 0, None) ** 2
    floor = floor + 0.10 * np.clip(0.40 - u, 0, None) ** 2 / 0.16
    lung = np.minimum(np.minimum(np.minimum(outer - u, u - inner), floor - g.y), g.y - LUNG_TOP)
    return Outlines(u, outer, inner, floor, lung)


def ellipse(g: Grid, x: float, y: float, a: float, b: float, tilt: float = 0.0) -> ndarray:
    """Return the approximate (H, W) distance in an ellipse with semi-axes a (along x) and b, sheared by `tilt`."""
    dx = (g.x - x) / a
    dy = (g.y - y - tilt * (g.x - x)) / b
    return (1.0 - np.sqrt(dx * dx + dy * dy)) * min(a, b)


def heart(g: Grid, f: Frame) -> ndarray:
    """Return the (H, W) distance inside the heart: apex down and to the patient's left, base behind the sternum."""
    center = (f.heart_left - f.heart_right) / 2
    half = (f.heart_left + f.heart_right) / 2
    top = (f.dome["right"] + f.dome["left"]) / 2
    height = 0.30 + 0.25 * half
    body = ellipse(g, center, top - 0.62 * height + 0.10, half, height, tilt=0.22)
    # The great vessels taper towards the neck.
    waist = 0.115 + 0.10 * np.clip(g.y + 0.35, 0, None)
    return np.maximum(body, np.minimum(waist - np.abs(g.x - 0.01), top - g.y))


ZONE_HEIGHT = {"upper": 0.17, "mid": 0.50, "lower": 0.80}
"""Center of a zone as a fraction of the distance from apex to diaphragm."""


def zone_point(f: Frame, side: Side, zone: str, depth: float = 0.5) -> tuple[float, float]:
    """Return (x, y) of a point in a lung zone, clear of the heart; `depth` runs from hilum (0) to ribs (1)."""
    y = LUNG_TOP + 0.06 + ZONE_HEIGHT[zone] * (f.dome[side] - LUNG_TOP - 0.06)
    outer = float(pleura(np.array(y), LUNG_TOP, f.chest)[0])
    reach = {"right": f.heart_right, "left": f.heart_left}[side]
    inner = max(0.16, reach if zone == "lower" else 0.5 * reach if zone == "mid" else 0.0)
    inner = min(inner, outer - 0.22)
    return SIGN[side] * (inner + (0.15 + 0.6 * depth) * (outer - inner)), y


def side_mask(g: Grid, side: Side) -> ndarray:
    """Return (1, W) floats, 1 on the half of the image that shows this side of the patient."""
    return (g.x * SIGN[side] > 0).astype(np.float32)
