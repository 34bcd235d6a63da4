"""The patch discriminator: is each patch of the picture real? (Isola et al., "Image-to-image translation", 2017)

Source followed: CompVis/taming-transformers, ``taming/modules/discriminator/model.py``, with its key names.
"""

from typing import Literal

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """4x4 convolutions, ``layers`` of them with stride 2; three see patches of 70 x 70 pixels.

    Args:
        channels: of an image.
        width: filters of the first layer, doubled by each further one up to eight times.
        layers: with stride 2.
        norm: ``batch`` as taming; ``group`` shares nothing between images, so real and generated pictures may
            come in any batch and on any number of processes.
    """

    def __init__(
        self, channels: int = 1, width: int = 64, layers: int = 3, norm: Literal["batch", "group"] = "batch"
    ) -> None:
        super().__init__()
        sequence: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for number in range(1, layers + 1):
            after = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            # BatchNorm has a shift of its own, so taming's convolutions have no bias before it.
            sequence += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=norm == "group"),
                nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(min(32, after // 4), after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        sequence.append(nn.Conv2d(before, 1, 4, padding=1))
        self.main = nn.Sequential(*sequence)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 1, h, w) logits, positive where a patch looks real."""
        return self.main(images)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
