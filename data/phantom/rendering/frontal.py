"""Render a frontal chest radiograph from a state: bright where the body absorbs X-rays, dark where there is air.

Layers are composed from back to front on (H, W) float32 arrays. Smooth fields (exposure, mottle) are generated
on a coarse grid and enlarged. Every finding is visible at 64 pixels, since small models are evaluated on phantoms.
"""

from functools import lru_cache

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from medunifier.data.phantom.rendering.anatomy import (
    CARINA,
    LUNG_TOP,
    SIGN,
    Frame,
    Grid,
    Outlines,
    ellipse,
    frame,
    grid,
    heart,
    outlines,
    pleura,
    side_mask,
    zone_point,
)
from medunifier.data.phantom.rendering.exposure import add_density, expose, smooth
from medunifier.data.phantom.state import Lesion, Side, State

_OUTSIDE, _WALL, _LUNG, _HEART, _ABDOMEN, _FLUID = 0.03, 0.50, 0.20, 0.68, 0.70, 0.58
_OPACITY, _CONSOLIDATION, _NODULE, _ATELECTASIS = 0.38, 0.42, 0.48, 0.30


def render_frontal(state: State, size: int, rng: Generator) -> ndarray:
    """Render the frontal radiograph of a state.

    Args:
        state: anatomy and findings.
        size: height and width in pixels, at least 32.
        rng: samples what the state does not specify: exposure, noise, the shapes of opacities. The same state
            and generator give the same image.

    Returns:
        (size, size) float32 in [0, 1], bones bright (MONOCHROME2).
    """
    image, _ = _render(state, size, rng)
    return expose(grid(size), image, 0.03 if state.position == "AP" else 0.0, rng)


def finding_masks(state: State, size: int, rng: Generator) -> dict[str, ndarray]:
    """Return {observation: (size, size) booleans}: finding masks of the image that :func:`render_frontal` returns.

    Only for localized findings; true where the finding's layer has at least half its full strength. A finding
    with an empty mask has no entry.
    """
    layers = _render(state, size, rng)[1]
    return {
        name: np.broadcast_to(layer >= 0.5 * strength, (size, size))
        for name, (layer, strength) in layers.items()
        if layer.max() >= 0.5 * strength
    }


def _render(state: State, size: int, rng: Generator) -> tuple[ndarray, dict[str, tuple[ndarray, float]]]:
    """Return the density map before exposure, and {observation: (layer, full strength)} of its findings."""
    g, f = grid(size), frame(state)
    o = outlines(g, f)
    cardiac = heart(g, f)
    lung = g.soft(o.lung, 0.02)

    image = _body(g, f, o)
    air = _LUNG + 0.03 * smooth(g, rng, 5) + 0.05 * np.clip(g.y, 0, 1) + _vessels(g, state)
    air = np.minimum(air + _edema(g, state), 0.58)  # edematous lung stays darker than the heart
    opacity = _opacity(g, f, state.opacity, rng)
    air = add_density(air, opacity)
    consolidation = _consolidation(g, f, state.consolidation, rng)
    air = add_density(air, consolidation)
    air, gas = _pneumothorax(g, f, o, state.pneumothorax, air)
    image = image * (1 - lung) + air * lung

    ribs = _ribs(g, f, state)
    image += ribs * (0.35 + 0.65 * lung)
    image = _mediastinum(g, state, cardiac, image)
    image, fluid = _effusions(g, f, o, state.effusions, image)
    nodule = _nodule(g, f, state.nodule, rng)
    image = add_density(image, nodule)
    plates = _atelectasis(g, f, state.atelectasis, rng)
    image = add_density(image, plates)
    image = _clavicles(g, f, state.fracture, image)
    image = _devices(g, f, state.devices, image)
    # Findings in the lung end at its border.
    return image, {
        "Lung Opacity": (np.minimum(opacity, lung), _OPACITY),
        "Consolidation": (np.minimum(consolidation, lung), _CONSOLIDATION),
        "Pneumothorax": (np.minimum(gas, lung), 1.0),
        "Pleural Effusion": (fluid, 1.0),
        "Lung Lesion": (nodule, _NODULE),
        "Atelectasis": (plates, _ATELECTASIS),
    }


def _body(g: Grid, f: Frame, o: Outlines) -> ndarray:
    """Render neck, shoulders, chest wall and abdomen on a black background."""
    neck = 0.27 + 0.75 / (1 + np.exp(-(g.y + 0.80) * 22))
    flank = f.chest + 0.17 + 0.06 * np.exp(-(((g.y + 0.5) / 0.22) ** 2)) + 0.03 * g.y
    edge = np.minimum(neck, np.maximum(flank, 0.0) + 0.22 * (1 / (1 + np.exp((g.y + 0.42) * 18))))
    inside = g.soft(edge - o.u, 0.05)
    # Beside the lungs the chest wall is projected tangentially; it thins towards the skin.
    wall = _WALL * (0.72 + 0.28 * np.clip((edge - o.u) / 0.20, 0, 1))
    belly = g.soft(g.y - o.floor, 0.05) * g.soft(f.chest + 0.05 - o.u, 0.12)
    wall = wall + (_ABDOMEN - wall) * belly
    gas = g.soft(ellipse(g, 0.36, f.dome["left"] + 0.20, 0.17, 0.085), 0.07)  # in the stomach
    return _OUTSIDE + (wall - 0.24 * gas - _OUTSIDE) * inside


def _ribs(g: Grid, f: Frame, state: State) -> ndarray:
    """Render posterior and anterior ribs as two periodic bands: one evaluation yields all 24."""
    u, a = np.abs(g.x), state.anatomy
    posterior = g.y - 0.55 * (u - 0.22) ** 2 / (f.chest - 0.2)
    anterior = g.y + 0.55 * (u - 0.15)

    def band(height: ndarray, spacing: float, width: float) -> ndarray:
        t = (height / spacing + a.rib_phase) % 1.0
        return np.clip((width - np.abs(t - 0.5)) / 0.10, 0.0, 1.0)

    cage = g.soft(f.chest + 0.05 - u, 0.05) * g.soft(u - 0.07, 0.05)
    cage = cage * g.soft(g.y + 0.82, 0.1) * g.soft(0.62 - g.y, 0.3)
    front = band(anterior, a.rib_spacing * 1.25, 0.20) * g.soft(u - 0.30, 0.2) * g.soft(g.y + 0.45, 0.2)
    return (0.085 * band(posterior, a.rib_spacing, 0.22) + 0.035 * front) * cage


def _mediastinum(g: Grid, state: State, cardiac: ndarray, image: ndarray) -> ndarray:
    """Add heart, great vessels, aortic knob and spine, and the radiolucent trachea."""
    knob_r = state.anatomy.knob
    knob = ellipse(g, 0.10 + 0.55 * (knob_r - 0.085), -0.34, knob_r, knob_r * 1.15)
    shade = np.maximum(g.soft(cardiac, 0.03), 0.95 * g.soft(knob, 0.025))
    # The heart must not darken brighter tissue, and the vessels fade into the neck above.
    image = image + np.maximum(_HEART - image, 0) * shade * g.soft(g.y + 0.72, 0.30)
    size = g.x.shape[1]
    return image + _spine(size) - _airways(size)


@lru_cache(maxsize=4)
def _spine(size: int) -> ndarray:
    """Return (H, W) vertebrae; the same for all patients."""
    g = grid(size)
    spine = g.soft(0.065 - np.abs(g.x), 0.04) * g.soft(g.y + 1.1, 0.1)
    return 0.07 * spine * (0.75 + 0.25 * np.cos(g.y * (2 * np.pi / 0.145)))


@lru_cache(maxsize=4)
def _airways(size: int) -> ndarray:
    """Return (H, W) trachea and main bronchi, to be subtracted; the same for all patients."""
    g = grid(size)
    pipe = g.soft(0.035 - np.abs(g.x + 0.005), 0.03) * g.soft(CARINA - g.y, 0.05)
    for sign in (-1.0, 1.0):
        reach = sign * g.x
        branch = g.soft(0.026 - np.abs(g.y - CARINA - 0.75 * reach), 0.03)
        pipe = np.maximum(pipe, branch * (reach > 0) * g.soft(0.17 - reach, 0.08))
    return 0.17 * pipe


def _vessels(g: Grid, state: State) -> ndarray:
    """Render hila and pulmonary arteries; edema makes the arteries more prominent."""
    size = g.x.shape[1]
    ink = _arteries(state.anatomy.texture, size) * ((size / 64) ** 2 * (1.0 + 0.35 * state.edema))
    return np.minimum(0.075 * ink, 0.17) + _hila(size)


@lru_cache(maxsize=4)
def _hila(size: int) -> ndarray:
    """Return (H, W) hila of both lungs; the same for all patients."""
    g = grid(size)
    right, left = (g.soft(ellipse(g, s * 0.19, -0.11 + 0.03 * (s < 0), 0.085, 0.15, 0.3 * s), 0.12) for s in (-1, 1))
    return 0.11 * (right + left)


@lru_cache(maxsize=2)  # a patient's studies follow each other
def _arteries(texture: int, size: int) -> ndarray:
    """Return the patient-specific (H, W) arterial pattern."""
    rng = np.random.default_rng(texture)
    count, steps = 22, 48
    start = rng.uniform(0.0, 0.03, (2, count, 1))
    angle = np.linspace(-1.35, 1.35, count)[None, :, None] + rng.normal(0, 0.12, (2, count, 1))
    length = rng.uniform(0.45, 0.80, (2, count, 1))
    t = np.linspace(0.0, 1.0, steps)[None, None, :]
    bend = angle + rng.normal(0, 0.35, (2, count, 1)) * t
    sign = np.array([-1.0, 1.0])[:, None, None]
    x = sign * (0.19 + start + t * length * np.cos(bend) * 0.85)
    y = -0.12 + t * length * np.sin(bend) * 1.05 + 0.03 * (sign < 0)
    weight = np.broadcast_to((1.0 - t) ** 1.3, x.shape)
    column = np.clip(((x + 1) * 0.5 * size).astype(int), 0, size - 1)
    row = np.clip(((y + 1) * 0.5 * size).astype(int), 0, size - 1)
    ink = np.bincount((row * size + column).ravel(), weights=weight.ravel(), minlength=size * size)
    return gaussian_filter(ink.reshape(size, size).astype(np.float32), 0.011 * size, truncate=2.5)


def _edema(g: Grid, state: State) -> ndarray:
    """Render bat-wing edema: haze that is densest around the hila and spares the periphery."""
    if not state.edema:
        return np.zeros((1, 1), np.float32)
    strength = (0.0, 0.15, 0.30)[state.edema]
    right, left = (np.exp(-(((g.x - center) / 0.24) ** 2) - ((g.y + 0.02) / 0.34) ** 2) for center in (-0.34, 0.34))
    return strength * (right + left)


def _consolidation(g: Grid, f: Frame, lesion: Lesion | None, rng: Generator) -> ndarray:
    """Render one dense area with an irregular border, nearly as bright as the heart."""
    if lesion is None or lesion.zone is None:
        return np.zeros((1, 1), np.float32)
    x, y = zone_point(f, lesion.side, lesion.zone, rng.uniform(0.35, 0.6))
    radius = (0.17, 0.23, 0.30)[lesion.size]
    blob = ellipse(g, x, y, radius * 1.1, radius * 0.85, rng.uniform(-0.3, 0.3))
    return _CONSOLIDATION * g.soft(blob + 0.035 * smooth(g, rng, 14), 0.07)


def _opacity(g: Grid, f: Frame, lesion: Lesion | None, rng: Generator) -> ndarray:
    """Render patchy opacities: several faint blobs scattered over a zone, with aerated lung between them."""
    if lesion is None or lesion.zone is None:
        return np.zeros((1, 1), np.float32)
    x, y = zone_point(f, lesion.side, lesion.zone, 0.45)
    spread, count = ((0.14, 6), (0.19, 10), (0.25, 16))[lesion.size]
    patches = np.zeros((1, 1), np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    for number in range(count):
        # Sunflower (Vogel spiral) arrangement: even coverage without coinciding blobs.
        away, angle = spread * np.sqrt((number + 0.5) / count), turn + 2.4 * number
        px, py = x + away * np.cos(angle), y + away * np.sin(angle)
        r, tilt, weight = rng.uniform(0.042, 0.075), rng.uniform(-0.6, 0.6), rng.uniform(0.75, 1.0)
        patch = np.exp(-((g.x - px + tilt * (g.y - py)) ** 2) / r**2 - ((g.y - py) ** 2) / r**2)
        patches = np.maximum(patches, weight * patch)
    return _OPACITY * patches


def _nodule(g: Grid, f: Frame, lesion: Lesion | None, rng: Generator) -> ndarray:
    """Render a round shadow with a sharp border: 5, 7 or 11 pixels wide in a 64-pixel image."""
    if lesion is None or lesion.zone is None:
        return np.zeros((1, 1), np.float32)
    x, y = zone_point(f, lesion.side, lesion.zone, rng.uniform(0.35, 0.65))
    radius = (0.080, 0.110, 0.170)[lesion.size]
    return _NODULE * g.soft(ellipse(g, x, y, radius, radius * rng.uniform(0.92, 1.08)), 0.025)


def _atelectasis(g: Grid, f: Frame, sides: tuple[Side, ...], rng: Generator) -> ndarray:
    """Render plate atelectasis: two slanted lines above the diaphragm."""
    plates = np.zeros((1, 1), np.float32)
    for side in sides:
        x, y = zone_point(f, side, "lower", 0.45)
        for number in range(2):
            slope = SIGN[side] * rng.uniform(0.20, 0.35)
            across = np.abs(g.y - (y - 0.02 + 0.13 * number) - slope * (g.x - x))
            along = 0.19 - np.abs(g.x - x)
            plates = np.maximum(plates, g.soft(np.minimum(0.022 - across, along), 0.025))
    return _ATELECTASIS * plates


def _pneumothorax(g: Grid, f: Frame, o: Outlines, lesion: Lesion | None, air: ndarray) -> tuple[ndarray, ndarray]:
    """Add pleural air, widest at the apex: black, without vessels, bounded by a fine white pleural line.

    Returns the lungs with the pneumothorax, and its layer in [0, 1].
    """
    if lesion is None:
        return air, np.zeros((1, 1), np.float32)
    gap = (0.10, 0.18, 0.28)[lesion.size]
    top = LUNG_TOP + 1.7 * gap
    outer, inner = pleura(g.y, top, f.chest - gap)
    # The medial border stays at the mediastinum; only the apex comes down.
    collapsed = np.minimum(np.minimum(outer - o.u, o.u - inner + 0.02), g.y - top)
    side = side_mask(g, lesion.side)
    gas = (1 - g.soft(collapsed, 0.015)) * side
    line = g.soft(0.014 - np.abs(collapsed), 0.016) * side
    squeezed = air + 0.05 * side * (1 + lesion.size)
    air = air + (squeezed - air) * (1 - gas)
    return air + (0.035 - air) * gas + 0.20 * line, gas


def _effusions(
    g: Grid, f: Frame, o: Outlines, lesions: tuple[Lesion, ...], image: ndarray
) -> tuple[ndarray, ndarray]:
    """Add pleural fluid that obscures the diaphragm and rises along the ribs (meniscus sign).

    Returns the image with the effusions, and their layer in [0, 1].
    """
    layer = np.zeros((1, 1), np.float32)
    for lesion in lesions:
        level = f.dome[lesion.side] + (0.14, -0.06, -0.42)[lesion.size]
        climb = (0.42, 0.38, 0.34)[lesion.size]
        across = np.clip((o.u - 0.10) / (f.chest - 0.10), 0.0, 1.0)
        surface = level - climb * across**2.5
        room = np.minimum(o.outer - o.u, o.u - 0.08)
        fluid = g.soft(np.minimum(g.y - surface, room), 0.045) * side_mask(g, lesion.side)
        fluid = fluid * g.soft(o.floor + 0.05 - g.y, 0.1)
        image = np.maximum(image, image + (_FLUID - image) * fluid)
        layer = np.maximum(layer, fluid)
    return image, layer


def _clavicles(g: Grid, f: Frame, fracture: Side | None, image: ndarray) -> ndarray:
    """Add clavicles; a fractured one has a gap, and its lateral fragment is displaced downwards."""
    for side, sign in SIGN.items():
        u = sign * g.x
        line = f.clavicle - 0.26 * (u - 0.08) + 0.10 * np.sin(u * 6.0)
        bone = g.soft(u - 0.09, 0.05) * g.soft(0.80 - u, 0.06)
        if side == fracture:
            line = line + np.where(u > 0.42, 0.16, 0.0)
            bone = bone * (np.abs(u - 0.42) > 0.04)
        image = add_density(image, 0.19 * bone * g.soft(0.030 - np.abs(g.y - line), 0.02))
    return image


def _devices(g: Grid, f: Frame, devices: tuple[str, ...], image: ndarray) -> ndarray:
    """Add support devices, brighter than any bone."""
    metal = np.zeros((1, 1), np.float32)
    thin = max(0.014, 0.6 * g.pixel)  # at low resolution a line must be at least a pixel wide to stay visible
    if "endotracheal tube" in devices:
        tube = np.abs(np.abs(g.x + 0.005) - 1.5 * thin)
        metal = np.maximum(metal, 0.9 * g.soft(np.minimum(thin - tube, CARINA - 0.10 - g.y), 0.012))
    if "central line" in devices:
        # From the right side of the neck down the superior vena cava.
        path = -0.13 - 0.20 * np.clip(-(g.y + 0.45), 0, None) - 0.25 * np.clip(-(g.y + 0.70), 0, None)
        metal = np.maximum(metal, g.soft(np.minimum(thin - np.abs(g.x - path), 0.02 - g.y), 0.012))
    if "pacemaker" in devices:
        can = 0.115 - ((g.x - 0.56) ** 4 + (0.85 * (g.y + 0.46)) ** 4) ** 0.25  # a square with rounded corners
        metal = np.maximum(metal, g.soft(can, 0.02))
        # The lead crosses to the vena cava and enters the right ventricle.
        top = -0.60 + 0.9 * (g.x - 0.15) ** 2
        lead = np.minimum(thin - np.abs(g.y - top), np.minimum(g.x + 0.10, 0.50 - g.x))
        fall = -0.10 + 0.30 * np.clip(g.y - 0.02, 0, None) ** 1.5
        lead = np.maximum(lead, np.minimum(thin - np.abs(g.x - fall), np.minimum(g.y + 0.55, 0.34 - g.y)))
        metal = np.maximum(metal, g.soft(lead, 0.012))
    return image + (0.97 - image) * metal
