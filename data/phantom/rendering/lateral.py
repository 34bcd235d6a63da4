"""Render the lateral view of a state: spine on the left of the image, sternum on the right.

The two lungs are superimposed, so sides cannot be distinguished and a unilateral finding is fainter than in the
frontal view. Heights match the frontal view: a finding is on the same level in both.
"""

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from medunifier.data.phantom.rendering.anatomy import CARINA, LUNG_TOP, Frame, Grid, ellipse, frame, grid, zone_point
from medunifier.data.phantom.rendering.exposure import add_density, expose, smooth
from medunifier.data.phantom.state import Lesion, State

_OUTSIDE, _WALL, _LUNG, _HEART, _ABDOMEN, _FLUID = 0.03, 0.50, 0.24, 0.62, 0.68, 0.60

# x of the findings in a zone: upper lobes are central, the middle lobe anterior, lower lobes posterior.
_DEPTH = {"upper": 0.00, "mid": 0.10, "lower": -0.22}


def render_lateral(state: State, size: int, rng: Generator) -> ndarray:
    """Render the lateral radiograph of a state.

    Args:
        state: anatomy and findings.
        size: height and width in pixels, at least 32.
        rng: samples what the state does not specify.

    Returns:
        (size, size) float32 in [0, 1], bones bright (MONOCHROME2).
    """
    g, f = grid(size), frame(state)
    front, back = _borders(g)
    floor = _floor(g, f)
    lung = g.soft(np.minimum(np.minimum(front - g.x, g.x - back), np.minimum(floor - g.y, g.y - LUNG_TOP)), 0.05)

    image = _body(g, front, back, floor)
    air = _LUNG + 0.03 * smooth(g, rng, 5) + _hilum(g, state)
    air = add_density(air, _patches(g, f, state.opacity, rng))
    air = add_density(air, _dense(g, f, state.consolidation, rng))
    air = _apical_air(g, state.pneumothorax, air)
    image = image * (1 - lung) + air * lung

    image = _bones(g, front, back, state, image)
    heart = _heart(g, f)
    image = image + np.maximum(_HEART - image, 0) * g.soft(heart, 0.05)
    image = _fluid(g, f, front, back, state.effusions, image)
    image = add_density(image, _nodule(g, f, state.nodule, rng))
    image = add_density(image, _plates(g, f, state, rng))
    image = _devices(g, state, image)
    return expose(g, image, 0.0, rng)


def _borders(g: Grid) -> tuple[ndarray, ndarray]:
    """Return (H, 1) x of the inner surface of the sternum and of the ribs behind the spine."""
    front = 0.52 - 0.42 * np.clip((0.25 - g.y) / 1.1, 0, None) ** 1.6 - 0.10 * np.clip(g.y - 0.25, 0, None)
    back = -0.58 + 0.30 * np.clip((-0.20 - g.y) / 0.6, 0, None) ** 2
    return front, back


def _floor(g: Grid, f: Frame) -> ndarray:
    """Return (1, W) y of the diaphragm: high anteriorly, low posteriorly. Both domes are averaged."""
    top = (f.dome["right"] + f.dome["left"]) / 2
    return top + 0.9 * np.clip(-0.05 - g.x, 0, None) ** 1.6 + 0.35 * np.clip(g.x - 0.15, 0, None) ** 2


def _body(g: Grid, front: ndarray, back: ndarray, floor: ndarray) -> ndarray:
    """Render chest wall, shoulders and abdomen on a black background."""
    inside = g.soft(np.minimum(front + 0.12 - g.x, g.x - back + 0.22), 0.05)
    shoulder = 0.16 * g.soft(-0.55 - g.y, 0.35)
    belly = g.soft(g.y - floor, 0.06)
    wall = _WALL + shoulder + (_ABDOMEN - _WALL) * belly
    return _OUTSIDE + (wall - _OUTSIDE) * inside


def _hilum(g: Grid, state: State) -> ndarray:
    """Render both hila below the carina, with their vessels; edema spreads from here."""
    root = 0.10 * g.soft(ellipse(g, 0.02, -0.08, 0.13, 0.18), 0.16)
    haze = (0.0, 0.13, 0.26)[state.edema]
    if haze:
        root = root + haze * np.exp(-((g.x / 0.32) ** 2) - ((g.y + 0.02) / 0.34) ** 2)
    return root


def _point(g: Grid, f: Frame, lesion: Lesion, rng: Generator) -> tuple[float, float]:
    """Return (x, y) of a focal finding: at its height in the frontal view and the depth of its lobe."""
    assert lesion.zone is not None  # noqa: S101 - narrows a type
    return _DEPTH[lesion.zone] + rng.uniform(-0.05, 0.05), zone_point(f, lesion.side, lesion.zone)[1]


def _dense(g: Grid, f: Frame, lesion: Lesion | None, rng: Generator) -> ndarray:
    if lesion is None:
        return np.zeros((1, 1), np.float32)
    x, y = _point(g, f, lesion, rng)
    radius = (0.15, 0.21, 0.27)[lesion.size]
    return 0.36 * g.soft(ellipse(g, x, y, radius, radius * 0.85) + 0.035 * smooth(g, rng, 14), 0.07)


def _patches(g: Grid, f: Frame, lesion: Lesion | None, rng: Generator) -> ndarray:
    if lesion is None:
        return np.zeros((1, 1), np.float32)
    x, y = _point(g, f, lesion, rng)
    spread, count = ((0.13, 6), (0.18, 10), (0.23, 16))[lesion.size]
    patches = np.zeros((1, 1), np.float32)
    for number in range(count):
        away, angle = spread * np.sqrt((number + 0.5) / count), 2.4 * number + rng.uniform(0, 0.5)
        px, py, r = x + away * np.cos(angle), y + away * np.sin(angle), rng.uniform(0.042, 0.075)
        patches = np.maximum(patches, np.exp(-(((g.x - px) / r) ** 2) - ((g.y - py) / r) ** 2))
    return 0.30 * patches


def _nodule(g: Grid, f: Frame, lesion: Lesion | None, rng: Generator) -> ndarray:
    if lesion is None:
        return np.zeros((1, 1), np.float32)
    x, y = _point(g, f, lesion, rng)
    radius = (0.080, 0.110, 0.170)[lesion.size]
    return 0.40 * g.soft(ellipse(g, x, y, radius, radius), 0.025)


def _plates(g: Grid, f: Frame, state: State, rng: Generator) -> ndarray:
    plates = np.zeros((1, 1), np.float32)
    for side in state.atelectasis:
        y = f.dome[side] - 0.06 + rng.uniform(-0.03, 0.03)
        across = np.abs(g.y - y - 0.35 * (g.x + 0.10))
        plates = np.maximum(plates, g.soft(np.minimum(0.022 - across, 0.20 - np.abs(g.x + 0.10)), 0.025))
    return 0.26 * plates


def _apical_air(g: Grid, lesion: Lesion | None, air: ndarray) -> ndarray:
    """Add apical air: half as dark as in the frontal view because the other lung overlies it, with a pleural line."""
    if lesion is None:
        return air
    edge = LUNG_TOP + (0.20, 0.34, 0.52)[lesion.size]
    depth = edge + 0.25 * (g.x - 0.05) ** 2 - g.y
    return air - 0.10 * g.soft(depth, 0.03) + 0.12 * g.soft(0.014 - np.abs(depth), 0.016)


def _bones(g: Grid, front: ndarray, back: ndarray, state: State, image: ndarray) -> ndarray:
    """Add spine with vertebrae, sternum, and the ribs of both sides as faint slanted bands."""
    line = -0.44 + 0.28 * np.clip(-g.y - 0.1, 0, None) ** 2
    spine = g.soft(0.095 - np.abs(g.x - line), 0.05) * (0.78 + 0.22 * np.cos(g.y * (2 * np.pi / 0.16)))
    # Towards the diaphragm more lung and less shoulder overlies the spine, so it darkens downwards.
    image = image + (0.26 - 0.10 * np.clip(g.y + 0.5, 0, 1)) * spine
    image = image + 0.16 * g.soft(0.030 - np.abs(g.x - front - 0.015), 0.03) * g.soft(0.42 - g.y, 0.1)
    phase = ((g.y + 0.45 * (g.x + 0.5)) / state.anatomy.rib_spacing + state.anatomy.rib_phase) % 1.0
    ribs = np.clip((0.20 - np.abs(phase - 0.5)) / 0.10, 0, 1) * g.soft(0.50 - g.y, 0.2) * g.soft(g.y + 0.80, 0.1)
    return image + 0.035 * ribs * g.soft(np.minimum(front - g.x, g.x - back), 0.05)


def _heart(g: Grid, f: Frame) -> ndarray:
    """Return the (H, W) distance inside heart and great vessels: on the diaphragm, against the sternum."""
    top = (f.dome["right"] + f.dome["left"]) / 2
    half = 0.24 + 0.75 * (f.ratio() - 0.43)
    body = ellipse(g, 0.40 - half, top - 0.20, half, 0.27 + 0.35 * (f.ratio() - 0.43), tilt=0.15)
    vessels = np.minimum(0.10 - np.abs(g.x - 0.06 - 0.10 * g.y), np.minimum(g.y + 0.42, top - g.y))
    return np.maximum(body, vessels)


def _fluid(g: Grid, f: Frame, front: ndarray, back: ndarray, lesions: tuple[Lesion, ...], image: ndarray) -> ndarray:
    """Add effusions in the posterior costophrenic angle, rising along the back; bilateral ones are brighter."""
    for lesion in lesions:
        level = f.dome[lesion.side] + (0.12, -0.06, -0.42)[lesion.size]
        climb = (0.30, 0.30, 0.28)[lesion.size]
        behind = np.clip((-0.05 - g.x) / 0.5, 0.0, 1.0)
        ahead = np.clip((g.x - 0.20) / 0.35, 0.0, 1.0)
        surface = level - climb * np.maximum(behind, 0.6 * ahead) ** 2
        fluid = g.soft(np.minimum(g.y - surface, np.minimum(front - g.x, g.x - back)), 0.05)
        image = image + 0.75 * np.maximum(_FLUID - image, 0) * fluid
    return image


def _devices(g: Grid, state: State, image: ndarray) -> ndarray:
    metal = np.zeros((1, 1), np.float32)
    thin = max(0.014, 0.6 * g.pixel)
    pipe = -0.02 - 0.12 * (g.y - CARINA)  # the trachea inclines posteriorly towards the carina
    if "endotracheal tube" in state.devices:
        tube = np.abs(np.abs(g.x - pipe) - 1.5 * thin)
        metal = np.maximum(metal, 0.9 * g.soft(np.minimum(thin - tube, CARINA - 0.10 - g.y), 0.012))
    if "central line" in state.devices:
        path = 0.10 - 0.15 * np.clip(-(g.y + 0.45), 0, None)
        metal = np.maximum(metal, g.soft(np.minimum(thin - np.abs(g.x - path), 0.02 - g.y), 0.012))
    if "pacemaker" in state.devices:
        metal = np.maximum(metal, g.soft(np.minimum(0.035 - np.abs(g.x - 0.40), 0.11 - np.abs(g.y + 0.46)), 0.02))
        lead = 0.10 + 0.35 * np.clip(g.y - 0.02, 0, None)
        metal = np.maximum(metal, g.soft(np.minimum(thin - np.abs(g.x - lead), 0.30 - np.abs(g.y + 0.05)), 0.012))
    return image + (0.97 - image) * metal
