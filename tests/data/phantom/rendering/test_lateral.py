"""Lateral images show every applicable finding, at its height in the frontal view."""

from dataclasses import replace

import numpy as np
import pytest

from medunifier.data.phantom.rendering.lateral import render_lateral
from medunifier.data.phantom.state import ZONES, Lesion, State
from tests.data.phantom.rendering.test_frontal import PLAIN


def change(state: State) -> np.ndarray:
    """Return the (64, 64) difference from the normal image."""
    seeds = range(4)
    rendered = np.mean([render_lateral(state, 64, np.random.default_rng(seed)) for seed in seeds], axis=0)
    normal = np.mean([render_lateral(PLAIN, 64, np.random.default_rng(seed)) for seed in seeds], axis=0)
    return rendered - normal


def test_shape_dtype_range_and_determinism() -> None:
    image = render_lateral(PLAIN, 50, np.random.default_rng(0))
    assert image.shape == (50, 50) and image.dtype == np.float32
    assert 0 <= image.min() < 0.1 and 0.6 < image.max() <= 1
    assert np.array_equal(image, render_lateral(PLAIN, 50, np.random.default_rng(0)))


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(("name", "least"), [("nodule", 10), ("consolidation", 25), ("opacity", 10)])
def test_focal_findings_are_at_the_height_of_the_frontal_view(name: str, least: int, zone: str) -> None:
    rows, _ = np.nonzero(change(replace(PLAIN, **{name: Lesion("right", 0, zone)})) > 0.07)
    assert len(rows) >= least
    low, high = {"upper": (6, 21), "mid": (16, 36), "lower": (28, 48)}[zone]
    assert low <= np.median(rows) <= high


@pytest.mark.parametrize(
    ("state", "least"),
    [
        (replace(PLAIN, heart=2), 60),
        (replace(PLAIN, edema=2), 60),
        (replace(PLAIN, effusions=(Lesion("left", 0),)), 20),
        (replace(PLAIN, pneumothorax=Lesion("left", 2)), 40),
        (replace(PLAIN, atelectasis=("left",)), 8),
        (replace(PLAIN, devices=("pacemaker",)), 10),
        (replace(PLAIN, devices=("endotracheal tube",)), 10),
        (replace(PLAIN, devices=("central line",)), 10),
    ],
)
def test_other_findings_are_visible(state: State, least: int) -> None:
    assert (np.abs(change(state)) > 0.06).sum() >= least


def test_effusions_grow_with_size_and_collect_posteriorly() -> None:
    areas = []
    for size in range(3):
        visible = change(replace(PLAIN, effusions=(Lesion("left", size),))) > 0.07
        areas.append(visible.sum())
    assert areas[0] < areas[1] < areas[2]
    small = change(replace(PLAIN, effusions=(Lesion("left", 0),))) > 0.07
    assert small[:, :32].sum() > small[:, 32:].sum()  # the spine is on the left of the image
