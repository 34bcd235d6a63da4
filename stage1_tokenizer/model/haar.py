"""What stands before the encoder and, inverted, behind the decoder.

Taming's f16 encoder costs 138 GFLOP for an image of 256 pixels, and over half of it is spent at the first
level, where 128 channels describe every single pixel. A radiograph's neighbouring pixels are nearly equal, so
that is arithmetic on redundancy. The Haar front end of the ``cxr_*`` presets gives the encoder blocks of
2^L x 2^L pixels as 4^L wavelet coefficients in place of pixels: nothing is lost (the transform is orthonormal
and its inverse is its transpose), the first convolution works on 1 / 4^L of the positions, and the
coefficients come sorted by scale and direction, where a plain patch front end would have the first layer learn
such a basis. Orthonormal means also that a squared error of coefficients *is* the squared error of the pixels,
so the decoder, which ends in coefficients, is trained on the same objective.

Several levels split every band again (a wavelet packet), since the channels must share one resolution.
"""

from functools import reduce

import torch
from torch import Tensor, nn

from medunifier.stage1_tokenizer.config import ModelConfig


class NoFrontEnd(nn.Module):
    """The image goes to the encoder as it is."""

    expansion = 1
    """Channels that the encoder sees for each channel of the image."""
    shrink = 1
    """Pixels along a side that become one position."""

    def forward(self, images: Tensor) -> Tensor:
        return images

    def inverse(self, bands: Tensor) -> Tensor:
        return bands


class Haar(nn.Module):
    """Orthonormal 2D Haar wavelet packet of ``levels`` levels.

    Args:
        levels: halvings of the resolution, 1 or more.
    """

    basis: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.shrink, self.expansion = 2**levels, 4**levels
        step = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        line = reduce(torch.kron, [step] * levels)  # (n, n), n = 2^levels: rows are the 1D basis vectors
        # Row i * n + j is the outer product of basis vectors i (down) and j (across), its pixels in reading order.
        self.register_buffer("basis", torch.kron(line, line), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * 4^levels, H / 2^levels, W / 2^levels), same norm."""
        blocks = nn.functional.pixel_unshuffle(images, self.shrink)
        return self._mix(blocks, self.basis)

    def inverse(self, bands: Tensor) -> Tensor:
        """The images whose coefficients ``bands`` are."""
        return nn.functional.pixel_shuffle(self._mix(bands, self.basis.T), self.shrink)

    def _mix(self, x: Tensor, matrix: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # float32 also under autocast: bf16 sums of 4^levels pixels would cost half a grey level of 8 bits.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().reshape(batch, channels // self.expansion, self.expansion, height * width)
            return (matrix @ x).reshape(batch, channels, height, width)


def build_front_end(config: ModelConfig) -> NoFrontEnd | Haar:
    """The front end that ``config`` names."""
    return Haar(config.front_end_levels) if config.front_end == "haar" else NoFrontEnd()
