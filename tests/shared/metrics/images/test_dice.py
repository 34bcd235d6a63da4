"""Dice against scikit-learn's F1 of pixels, and the constant mask against trying all."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medunifier.shared.metrics.images.dice import best_constant, dice_each
from tests.seeds import for_seeds


@for_seeds(60)
def test_equals_the_f1_of_pixels(seed):
    rng = np.random.default_rng(seed)
    marked, truth = rng.random((2, 3, 5, 4)) < rng.uniform(0.05, 0.9)
    expected = [f1_score(t.ravel(), m.ravel(), zero_division=1.0) for m, t in zip(marked, truth, strict=True)]
    assert dice_each(marked, truth) == pytest.approx(expected)


def test_nothing_marked_where_nothing_is_counts_one_and_anything_else_zero():
    empty, some = np.zeros((1, 2, 2), bool), np.eye(2, dtype=bool)[None]
    assert [float(dice_each(a, b)[0]) for a, b in ((empty, empty), (some, empty), (empty, some), (some, some))] == [
        1, 0, 0, 1,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="expected"):
        dice_each(empty, empty[0])


@for_seeds(20)
def test_the_constant_mask_is_the_best_of_all_cuts_and_near_the_best_of_all_masks(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((6, 2, 3)) < rng.random((2, 3))
    truth[:, 0, 0] = True
    every = [np.array(bits, dtype=bool).reshape(2, 3) for bits in product((0, 1), repeat=6)]

    def earns(mask):
        return dice_each(np.broadcast_to(mask, truth.shape), truth).mean()

    mean = truth.mean(axis=0)
    cuts = [mean >= cut for cut in np.unique(mean)]
    got = earns(best_constant(truth))
    assert got == pytest.approx(max(map(earns, cuts))) and got >= max(map(earns, every)) - 0.05
