"""Frontal images are within range, and every finding is visible at 64 pixels, on its side."""

from dataclasses import replace

import numpy as np
import pytest

from medunifier.data.phantom.rendering.frontal import render_frontal
from medunifier.data.phantom.state import FINDINGS, SIDES, ZONES, Lesion, State, study_state

PLAIN = replace(
    study_state(0, 0, 0, FINDINGS),
    position="PA",
    low_volume=False,
    heart=0,
    edema=0,
    effusions=(),
    pneumothorax=None,
    consolidation=None,
    opacity=None,
    nodule=None,
    atelectasis=(),
    fracture=None,
    devices=(),
)


def change(state: State) -> np.ndarray:
    """Return the (64, 64) difference from the normal image; noise is below 0.06."""
    seeds = range(4)
    rendered = np.mean([render_frontal(state, 64, np.random.default_rng(seed)) for seed in seeds], axis=0)
    normal = np.mean([render_frontal(PLAIN, 64, np.random.default_rng(seed)) for seed in seeds], axis=0)
    return rendered - normal


@pytest.mark.parametrize("size", [32, 64, 100])
def test_shape_dtype_and_range(size: int) -> None:
    image = render_frontal(PLAIN, size, np.random.default_rng(0))
    assert image.shape == (size, size) and image.dtype == np.float32
    assert 0 <= image.min() < 0.1 and 0.6 < image.max() <= 1


def test_images_of_different_sizes_have_the_same_content() -> None:
    small = render_frontal(PLAIN, 64, np.random.default_rng(0))
    large = render_frontal(PLAIN, 256, np.random.default_rng(0)).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("kind", "least"),
    [("effusion 0", 25), ("effusion 2", 220), ("pneumothorax 0", 25), ("pneumothorax 2", 150), ("fracture", 12)],
)
def test_sided_findings_are_visible_on_their_side(kind: str, least: int, side: str) -> None:
    name, *size = kind.split()
    lesion = Lesion(side, int(size[0])) if size else None
    state = {
        "effusion": lambda: replace(PLAIN, effusions=(lesion,)),
        "pneumothorax": lambda: replace(PLAIN, pneumothorax=lesion),
        "fracture": lambda: replace(PLAIN, fracture=side),
    }[name]()
    visible = np.abs(change(state)) > 0.07
    same, opposite = visible[:, :32], visible[:, 32:]
    if side == "left":
        same, opposite = opposite, same
    assert same.sum() >= least
    assert opposite.sum() <= 0.12 * same.sum()


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "least"), [("nodule", 14), ("consolidation", 45), ("opacity", 12)])
def test_focal_findings_are_visible_in_their_zone(name: str, least: int, side: str, zone: str) -> None:
    rows, columns = np.nonzero(change(replace(PLAIN, **{name: Lesion(side, 0, zone)})) > 0.07)
    assert len(rows) >= least
    assert (np.median(columns) < 32) == (side == "right")
    low, high = {"upper": (6, 21), "mid": (16, 36), "lower": (28, 48)}[zone]
    assert low <= np.median(rows) <= high


def test_visible_area_grows_with_lesion_size() -> None:
    for name in ("nodule", "consolidation", "opacity"):
        areas = [(change(replace(PLAIN, **{name: Lesion("right", size, "mid")})) > 0.07).sum() for size in range(3)]
        assert areas[0] < areas[1] < areas[2], name


def test_visible_area_grows_with_cardiomegaly_grade() -> None:
    widths = [(change(replace(PLAIN, heart=grade)) > 0.07).sum() for grade in (1, 2, 3)]
    assert 60 < widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("device", ["pacemaker", "endotracheal tube", "central line"])
def test_devices_are_brighter_than_bone(device: str) -> None:
    assert (render_frontal(replace(PLAIN, devices=(device,)), 64, np.random.default_rng(0)) > 0.80).sum() >= 8


def test_edema_and_atelectasis_are_visible() -> None:
    assert (change(replace(PLAIN, edema=1)) > 0.07).sum() > 60
    assert (change(replace(PLAIN, edema=2)) > 0.15).sum() > 100
    assert (change(replace(PLAIN, atelectasis=("left",))) > 0.07)[:, 32:].sum() > 12


def test_ap_and_pa_views_differ() -> None:
    assert (np.abs(change(replace(PLAIN, position="AP"))) > 0.07).sum() > 60
