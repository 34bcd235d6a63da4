"""Front ends: an invertible transform before the encoder, and its inverse after the decoder.

Taming's f16 encoder costs 138 GFLOP for an image of 256 pixels, and over half of it is spent at the first level,
which has 128 channels at every pixel. Neighbouring pixels of a radiograph are nearly equal, so most of that is
redundant. The Haar front end of the ``cxr_*`` presets replaces blocks of 2^L x 2^L pixels by 4^L wavelet
coefficients:

- It is lossless: the transform is orthonormal, and its inverse is its transpose.
- The first convolution works on 1 / 4^L of the positions.
- The coefficients are sorted by scale and direction; with plain patches the first layer would have to learn such a
  basis.
- The squared error of the coefficients equals that of the pixels, so a decoder that outputs coefficients is trained
  on the same objective.

With several levels every band is split again (a wavelet packet), since all channels must have the same resolution.
"""

from functools import reduce

import torch
from torch import Tensor, nn

from medunifier.stage1_tokenizer.config import ModelConfig


class IdentityFrontEnd(nn.Module):
    """Pass the image to the encoder unchanged."""

    channel_multiplier = 1
    """Encoder channels per image channel."""
    stride = 1
    """Pixels along a side per encoder position."""

    def forward(self, images: Tensor) -> Tensor:
        return images

    def inverse(self, bands: Tensor) -> Tensor:
        return bands


class HaarTransform(nn.Module):
    """Orthonormal 2D Haar wavelet packet of ``levels`` levels.

    Args:
        levels: how often the resolution is halved, 1 or more.
    """

    basis: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.stride, self.channel_multiplier = 2**levels, 4**levels
        step = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        line = reduce(torch.kron, [step] * levels)  # (n, n), n = 2^levels: rows are the 1D basis vectors
        # Row i * n + j is the outer product of basis vectors i (vertical) and j (horizontal), pixels in raster order.
        self.register_buffer("basis", torch.kron(line, line), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * 4^levels, H / 2^levels, W / 2^levels), same norm."""
        blocks = nn.functional.pixel_unshuffle(images, self.stride)
        return self._mix(blocks, self.basis)

    def inverse(self, bands: Tensor) -> Tensor:
        """Return the images whose coefficients are ``bands``."""
        return nn.functional.pixel_shuffle(self._mix(bands, self.basis.T), self.stride)

    def _mix(self, x: Tensor, matrix: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # float32 also under autocast: bf16 sums of 4^levels pixels would cost half a grey level of 8 bits.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().reshape(batch, channels // self.channel_multiplier, self.channel_multiplier, height * width)
            return (matrix @ x).reshape(batch, channels, height, width)


def build_front_end(config: ModelConfig) -> IdentityFrontEnd | HaarTransform:
    """Return the front end of ``config.front_end``."""
    return HaarTransform(config.front_end_levels) if config.front_end == "haar" else IdentityFrontEnd()
