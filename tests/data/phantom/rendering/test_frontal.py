"""Generated images: within range, and every finding visible at 64 pixels, on its side."""

from dataclasses import replace

import numpy as np
import pytest

from medunifier.data.phantom.rendering.frontal import draw
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
    """Return the (64, 64) difference to the normal image; noise is below 0.06."""
    seeds = range(4)
    with_it = np.mean([draw(state, 64, np.random.default_rng(seed)) for seed in seeds], axis=0)
    without = np.mean([draw(PLAIN, 64, np.random.default_rng(seed)) for seed in seeds], axis=0)
    return with_it - without


@pytest.mark.parametrize("size", [32, 64, 100])
def test_range_and_form(size: int) -> None:
    image = draw(PLAIN, size, np.random.default_rng(0))
    assert image.shape == (size, size) and image.dtype == np.float32
    assert 0 <= image.min() < 0.1 and 0.6 < image.max() <= 1


def test_size_changes_the_sampling_and_not_the_content() -> None:
    small = draw(PLAIN, 64, np.random.default_rng(0))
    large = draw(PLAIN, 256, np.random.default_rng(0)).reshape(64, 4, 64, 4).mean(axis=(1, 3))
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
    seen = np.abs(change(state)) > 0.07
    here, there = (seen[:, :32], seen[:, 32:]) if side == "right" else (seen[:, 32:], seen[:, :32])
    assert here.sum() >= least
    assert there.sum() <= 0.12 * here.sum()


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "least"), [("nodule", 14), ("consolidation", 45), ("opacity", 12)])
def test_focal_findings_are_visible_in_their_zone(name: str, least: int, side: str, zone: str) -> None:
    seen = change(replace(PLAIN, **{name: Lesion(side, 0, zone)})) > 0.07
    rows, columns = np.nonzero(seen)
    assert len(rows) >= least
    assert (np.median(columns) < 32) == (side == "right")
    low, high = {"upper": (6, 21), "mid": (16, 36), "lower": (28, 48)}[zone]
    assert low <= np.median(rows) <= high


def test_larger_is_larger() -> None:
    for name in ("nodule", "consolidation", "opacity"):
        areas = [(change(replace(PLAIN, **{name: Lesion("right", size, "mid")})) > 0.07).sum() for size in range(3)]
        assert areas[0] < areas[1] < areas[2], name


def test_a_large_heart_is_broader() -> None:
    widths = [(change(replace(PLAIN, heart=grade)) > 0.07).sum() for grade in (1, 2, 3)]
    assert 60 < widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("device", ["pacemaker", "endotracheal tube", "central line"])
def test_devices_are_the_whitest(device: str) -> None:
    assert (draw(replace(PLAIN, devices=(device,)), 64, np.random.default_rng(0)) > 0.80).sum() >= 8


def test_edema_and_atelectasis_are_visible() -> None:
    assert (change(replace(PLAIN, edema=1)) > 0.07).sum() > 60
    assert (change(replace(PLAIN, edema=2)) > 0.15).sum() > 100
    assert (change(replace(PLAIN, atelectasis=("left",))) > 0.07)[:, 32:].sum() > 12


def test_views_differ() -> None:
    assert (np.abs(change(replace(PLAIN, position="AP"))) > 0.07).sum() > 60
