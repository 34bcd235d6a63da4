"""The finding classifier that evaluates generated images must itself be able to classify."""

import numpy as np
import torch

from medunifier.shared.metrics.auroc import macro_auroc
from medunifier.stage2_unified.evaluate.classifiers.classifier import FindingClassifier


def squares(count, seed):
    """A bright square at the left, at the right, both or neither: two findings that only differ in place."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.4, 0.05, size=(count, 64, 64)).astype(np.float32)
    truth = rng.integers(0, 2, size=(count, 2)).astype(float)
    images[:, 28:40, 8:20] += 0.3 * truth[:, 0, None, None]
    images[:, 28:40, 44:56] += 0.3 * truth[:, 1, None, None]
    return images.clip(0, 1), truth


def test_it_learns_findings_by_their_place_and_ignores_uncertain_labels():
    images, truth = squares(300, 0)
    truth[::5, 0] = np.nan
    classifier = FindingClassifier(images, truth, steps=40)
    unseen, answers = squares(100, 1)
    assert macro_auroc(answers, classifier(unseen)) > 0.95


def test_it_is_a_function_of_its_seed_and_leaves_the_global_one_alone():
    images, truth = squares(64, 0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = (FindingClassifier(images, truth, steps=2, seed=seed)(images) for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    assert (torch.get_rng_state() == before).all()


def test_images_of_any_size_are_read():
    images, truth = squares(64, 0)
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    classifier = FindingClassifier(images, truth, steps=1)
    assert np.allclose(classifier(large), classifier(images), atol=1e-5)
