"""The Haar front end loses nothing and keeps lengths."""

import pytest
import torch

from medunifier.stage1_tokenizer.model.haar import Haar


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_inverse_gives_the_images_back_and_lengths_are_kept(levels, channels):
    images = torch.rand(2, channels, 16, 32) * 2 - 1
    haar = Haar(levels)
    bands = haar(images)
    assert bands.shape == (2, channels * 4**levels, 16 >> levels, 32 >> levels)
    torch.testing.assert_close(haar.inverse(bands), images, atol=3e-6, rtol=0)
    torch.testing.assert_close(bands.square().sum(), images.square().sum())


def test_bands_are_what_their_names_say():
    haar = Haar(1)
    down = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).tile(2, 2)[None, None]  # a horizontal edge in every block
    bands = haar(down)
    torch.testing.assert_close(bands[:, 2], torch.full((1, 2, 2), 2.0))
    assert bands[:, [0, 1, 3]].abs().max() < 1e-6
    flat = haar(torch.ones(1, 1, 4, 4))
    assert torch.allclose(flat[:, 0], torch.tensor(2.0)) and flat[:, 1:].abs().max() < 1e-6


def test_float32_under_autocast():
    images = torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        bands = Haar(2)(images)
    assert bands.dtype == torch.float32
    torch.testing.assert_close(Haar(2).inverse(bands), images, atol=1e-6, rtol=0)
