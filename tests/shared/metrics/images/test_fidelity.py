"""PSNR and SSIM of image pairs against their formulas."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medunifier.shared.metrics.images.fidelity import MS_SSIM_MIN_SIZE, ms_ssim, psnr, ssim
from tests.seeds import for_seeds


def pairs(seed):
    """Return two grey images of random similarity, (1, 1, 24, 30) each."""
    rng = np.random.default_rng(seed)
    a, noise = rng.random((2, 24, 30))
    share = rng.uniform(0, 1)
    return a, a * (1 - share) + noise * share


def as_tensor(image):
    return torch.from_numpy(image)[None, None]


def level_and_contrast(a, b):
    """A Gaussian window of deviation 1.5 and 11 pixels, the image mirrored at its border (Wang et al., 2004)."""

    def blurred(x):
        return gaussian_filter(x, 1.5, truncate=3.5, mode="mirror")

    means = blurred(a), blurred(b)
    variances = [blurred(x * x) - mean**2 for x, mean in zip((a, b), means, strict=True)]
    covariance = blurred(a * b) - means[0] * means[1]
    level = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
    return level, (2 * covariance + 0.03**2) / (sum(variances) + 0.03**2)


def ssim_by_formula(a, b):
    level, contrast = level_and_contrast(a, b)
    return (level * contrast).mean()


def contrast_by_formula(a, b):
    """torchmetrics takes it where the whole window lies within the image."""
    return level_and_contrast(a, b)[1][5:-5, 5:-5].mean()


@for_seeds(60)
def test_psnr_and_ssim_equal_their_formulas(seed):
    a, b = pairs(seed)
    assert psnr(as_tensor(a), as_tensor(b)).item() == pytest.approx(min(100, -10 * np.log10(((a - b) ** 2).mean())))
    assert ssim(as_tensor(a), as_tensor(b)).item() == pytest.approx(ssim_by_formula(a, b), abs=1e-4)


def test_equal_images_are_at_the_ceiling_and_each_image_has_its_own_value():
    a, b = (as_tensor(image) for image in pairs(0))
    images, others = torch.cat([a, a]), torch.cat([a, b])
    assert psnr(images, others)[0] == 100 > psnr(images, others)[1]
    assert ssim(images, others)[0].item() == pytest.approx(1) and ssim(images, others)[1] < 0.99


def test_ms_ssim_asks_for_its_five_scales():
    image = torch.rand(1, 1, MS_SSIM_MIN_SIZE, MS_SSIM_MIN_SIZE, generator=torch.Generator().manual_seed(0))
    assert ms_ssim(image, image).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=f"at least {MS_SSIM_MIN_SIZE} pixels"):
        ms_ssim(image[..., 1:], image[..., 1:])
