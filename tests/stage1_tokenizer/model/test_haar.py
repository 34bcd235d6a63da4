"""The Haar front end is lossless and orthonormal."""

import pytest
import torch

from medunifier.stage1_tokenizer.model.haar import HaarTransform


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_inverse_restores_the_images_and_norms_are_kept(levels, channels):
    images = torch.rand(2, channels, 16, 32) * 2 - 1
    haar = HaarTransform(levels)
    bands = haar(images)
    assert bands.shape == (2, channels * 4**levels, 16 >> levels, 32 >> levels)
    torch.testing.assert_close(haar.inverse(bands), images, atol=3e-6, rtol=0)
    torch.testing.assert_close(bands.square().sum(), images.square().sum())


def test_each_band_responds_to_its_direction():
    haar = HaarTransform(1)
    edge = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).tile(2, 2)[None, None]  # a horizontal edge in every block
    bands = haar(edge)
    torch.testing.assert_close(bands[:, 2], torch.full((1, 2, 2), 2.0))
    assert bands[:, [0, 1, 3]].abs().max() < 1e-6
    flat = haar(torch.ones(1, 1, 4, 4))
    assert torch.allclose(flat[:, 0], torch.tensor(2.0)) and flat[:, 1:].abs().max() < 1e-6


def test_transform_is_float32_under_autocast():
    images = torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        bands = HaarTransform(2)(images)
    assert bands.dtype == torch.float32
    torch.testing.assert_close(HaarTransform(2).inverse(bands), images, atol=1e-6, rtol=0)
