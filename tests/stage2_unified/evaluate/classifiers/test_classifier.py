"""The classifier of findings that evaluates generated images learns findings, deterministically."""

import numpy as np
import torch

from medunifier.shared.metrics.auroc import macro_auroc
from medunifier.stage2_unified.evaluate.classifiers.classifier import FindingClassifier


def squares(count, seed):
    """Images with a bright square on the left, the right, both or neither: two findings by position."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.4, 0.05, size=(count, 64, 64)).astype(np.float32)
    truth = rng.integers(0, 2, size=(count, 2)).astype(float)
    images[:, 28:40, 8:20] += 0.3 * truth[:, 0, None, None]
    images[:, 28:40, 44:56] += 0.3 * truth[:, 1, None, None]
    return images.clip(0, 1), truth


def test_findings_are_learned_by_position_and_uncertain_labels_are_ignored():
    images, truth = squares(300, 0)
    truth[::5, 0] = np.nan
    classifier = FindingClassifier(images, truth, steps=40)
    test_images, test_truth = squares(100, 1)
    assert macro_auroc(test_truth, classifier(test_images)) > 0.95


def test_training_depends_on_its_seed_and_keeps_the_global_random_state():
    images, truth = squares(64, 0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = (FindingClassifier(images, truth, steps=2, seed=seed)(images) for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    assert (torch.get_rng_state() == before).all()


def test_images_of_any_size_are_resized():
    images, truth = squares(64, 0)
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    classifier = FindingClassifier(images, truth, steps=1)
    assert np.allclose(classifier(large), classifier(images), atol=1e-5)
