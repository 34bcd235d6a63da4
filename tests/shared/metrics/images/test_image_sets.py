"""Distances between sets of images: FID and KID against torchmetrics on one small net, neighbours against loops."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from medunifier.shared.metrics.images.diversity import WEIGHTS, scales_of, similarity_within
from medunifier.shared.metrics.images.fidelity import MS_SSIM_MIN_SIZE, ms_ssim
from medunifier.shared.metrics.images.frechet import frechet_distance
from medunifier.shared.metrics.images.kernel_distance import kernel_distance
from medunifier.shared.metrics.images.manifold import manifold, nearest
from tests.seeds import for_seeds
from tests.shared.metrics.images.test_fidelity import contrast_by_formula, ssim_by_formula


class SmallNet(torch.nn.Module):
    """Twelve features of a grey image, the same for both sides of a comparison."""

    num_features = 12

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(12, 1, 3, 3, generator=generator, dtype=torch.float64)

    def forward(self, images):
        maps = torch.nn.functional.conv2d(images.double(), self.weight, stride=2)
        return maps.relu().mean(dim=(2, 3))


NET = SmallNet()


def two_sets(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 40, size=2)
    scale, shift = rng.uniform(0.5, 1), rng.uniform(0, 0.3)
    a, b = (torch.from_numpy(rng.random((int(n), 1, 8, 8))) for n in counts)
    return a, b * scale + shift


def features(images):
    return NET(images).numpy()


@for_seeds(60)
def test_fid_and_kid_equal_torchmetrics(seed):
    a, b = two_sets(seed)
    fid = FrechetInceptionDistance(feature=NET, input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=NET, subsets=1, subset_size=min(len(a), len(b)))
    for metric in (fid, kid):
        # torchmetrics' KID wants as many of each in a subset: all of the smaller set, as many of the other.
        same = slice(None) if metric is fid else slice(min(len(a), len(b)))
        metric.update(a[same], real=True)
        metric.update(b[same], real=False)
    assert frechet_distance(features(a), features(b)) == pytest.approx(float(fid.compute()), rel=1e-5, abs=1e-8)
    same = slice(min(len(a), len(b)))
    got = kernel_distance(features(a[same]), features(b[same]))
    assert got == pytest.approx(float(kid.compute()[0]), rel=1e-4, abs=1e-6)


def test_identical_sets_are_at_zero_and_other_ones_are_not():
    a = features(two_sets(1)[0])
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(12 * 0.25) and kernel_distance(a, a + 0.5) > 0.1
    wide = np.random.default_rng(0).normal(size=(10, 300))  # fewer images than features
    assert frechet_distance(wide, wide) == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased_where_fid_is_not():
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 20, 8)) for _ in range(200)]
    kids = np.array([kernel_distance(a, b) for a, b in pairs])
    assert abs(kids.mean()) < 4 * kids.std() / np.sqrt(len(kids))
    assert np.mean([frechet_distance(a, b) for a, b in pairs]) > 1


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_one_image_or_another_width_is_refused(metric):
    with pytest.raises(ValueError, match="two images"):
        metric(np.zeros((1, 4)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="one width"):
        metric(np.zeros((5, 4)), np.zeros((5, 3)))


def by_hand(real, generated, k):
    """Precision, recall, density and coverage as the papers define them, point by point."""

    def distance(x, y):
        return np.sqrt(((x - y) ** 2).sum())

    def radius(points, i):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    radii = [radius(real, i) for i in range(len(real))], [radius(generated, i) for i in range(len(generated))]
    inside = [[distance(x, y) < radii[0][i] for i, x in enumerate(real)] for y in generated]
    return (
        np.mean([any(row) for row in inside]),
        np.mean([any(distance(x, y) < radii[1][j] for j, y in enumerate(generated)) for x in real]),
        np.mean([sum(row) for row in inside]) / k,
        np.mean([min(distance(x, y) for y in generated) < radii[0][i] for i, x in enumerate(real)]),
    )


@for_seeds(200)
def test_neighbourhoods_equal_the_definition(seed):
    rng = np.random.default_rng(seed)
    real = rng.integers(0, 4, size=(rng.integers(4, 10), 2)).astype(float)  # few places: many ties
    generated = rng.integers(0, 4, size=(rng.integers(4, 10), 2)) + float(rng.integers(0, 3))
    got = manifold(real, generated, 2)
    figures = [values.mean() for values in (got.precision, got.recall, got.density, got.coverage)]
    assert figures == pytest.approx(list(by_hand(real, generated, 2)))


def test_one_sharp_mode_has_precision_and_no_recall():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 2))
    generated = real[:1] + 0.001 * rng.normal(size=(200, 2))
    got = manifold(real, generated)
    assert got.precision.mean() == 1 and got.recall.mean() < 0.05 and got.coverage.mean() < 0.1
    again = manifold(real, rng.normal(size=(200, 2)))
    assert (
        again.recall.mean() > 0.8
        and again.coverage.mean() > 0.9
        and again.density.mean() == pytest.approx(1, abs=0.15)
    )
    with pytest.raises(ValueError, match="more than 5 images"):
        manifold(real[:5], generated)


@for_seeds(200)
def test_the_nearest_is_the_nearest(seed):
    rng = np.random.default_rng(seed)
    queries, pool = rng.normal(size=(rng.integers(1, 9), 3)), rng.normal(size=(rng.integers(1, 9), 3))
    distances, numbers = nearest(queries, pool, block=2)
    for i, query in enumerate(queries):
        table = [float(np.sqrt(((query - row) ** 2).sum())) for row in pool]
        assert distances[i] == pytest.approx(min(table)) and table[numbers[i]] == min(table)


def test_a_copied_training_image_is_at_distance_zero():
    pool = np.random.default_rng(0).normal(size=(50, 4))
    distances, numbers = nearest(pool[[7, 3]] + [[0], [0.5]], pool)
    assert distances[0] == 0 and numbers[0] == 7 and distances[1] > 0


@for_seeds(60)
def test_variety_is_the_mean_over_pairs(seed):
    # Below 22 pixels one scale is left, and that is plain SSIM.
    rng = np.random.default_rng(seed)
    images = rng.random((rng.integers(2, 5), 21, 21))
    images = 0.4 * images + 0.6 * images[:1]
    assert scales_of(21) == 1
    pairs = [ssim_by_formula(a, b) for i, a in enumerate(images) for b in images[i + 1 :]]
    assert similarity_within(images) == pytest.approx(np.mean(pairs), abs=1e-4)


def ms_ssim_by_formula(a, b, weights):
    """Contrast and structure at every scale, the level at the coarsest; each scale is half of the one before."""
    product = 1.0
    for scale, weight in enumerate(weights):
        last = scale == len(weights) - 1
        product *= max(ssim_by_formula(a, b) if last else contrast_by_formula(a, b), 0) ** weight
        a, b = (x.reshape(x.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3)) for x in (a, b)) if not last else (a, b)
    return product


@for_seeds(60)
def test_variety_at_three_scales_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    images = rng.random((2, 44, 44))
    images[1] = images[0] + rng.uniform(0.05, 0.6) * (images[1] - images[0])
    assert scales_of(44) == 3
    weights = np.array(WEIGHTS[:3]) / sum(WEIGHTS[:3])
    assert similarity_within(images) == pytest.approx(ms_ssim_by_formula(*images, weights), abs=2e-4)


def test_equal_images_have_no_variety_and_unlike_ones_have():
    rng = np.random.default_rng(0)
    images = rng.random((3, 64, 64))
    assert similarity_within(np.repeat(images[:1], 3, axis=0)) == pytest.approx(1, abs=1e-5)
    assert similarity_within(images) < 0.3
    with pytest.raises(ValueError, match="two images"):
        similarity_within(images[:1])


def test_the_full_number_of_scales_is_ms_ssim_itself():
    assert scales_of(MS_SSIM_MIN_SIZE) == 5 > scales_of(MS_SSIM_MIN_SIZE - 1)
    images = torch.rand(2, 1, MS_SSIM_MIN_SIZE, MS_SSIM_MIN_SIZE, generator=torch.Generator().manual_seed(0))
    images[1] = images[0] * 0.7 + images[1] * 0.3
    assert similarity_within(images[:, 0].numpy()) == pytest.approx(ms_ssim(images[:1], images[1:]).item(), abs=1e-5)
