"""The patch discriminator: classifies each patch as real or generated (PatchGAN: Isola et al., 2017).

Source followed: CompVis/taming-transformers, ``taming/modules/discriminator/model.py``, with its key names.
"""

from typing import Literal

from torch import Tensor, nn

from medunifier.stage1_tokenizer.model.layers import GroupNorm


class PatchDiscriminator(nn.Module):
    """4x4 convolutions, ``layers`` of them with stride 2; three have a receptive field of 70 x 70 pixels.

    Args:
        channels: channels of an image.
        width: filters of the first layer; doubled by each further layer, up to eight times.
        layers: layers with stride 2.
        norm: ``batch`` as taming. ``group`` shares no statistics between images, so the result does not depend on how
            real and generated images are batched or distributed over processes.
    """

    def __init__(
        self, channels: int = 1, width: int = 64, layers: int = 3, norm: Literal["batch", "group"] = "batch"
    ) -> None:
        super().__init__()
        sequence: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        in_width = width
        for number in range(1, layers + 1):
            out_width = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            # BatchNorm adds a bias, so taming's convolutions before it have none.
            sequence += [
                nn.Conv2d(in_width, out_width, 4, stride=stride, padding=1, bias=norm == "group"),
                nn.BatchNorm2d(out_width) if norm == "batch" else GroupNorm(min(32, out_width // 4), out_width),
                nn.LeakyReLU(0.2),
            ]
            in_width = out_width
        sequence.append(nn.Conv2d(in_width, 1, 4, padding=1))
        self.main = nn.Sequential(*sequence)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 1, h, w) logits, positive for patches classified as real."""
        return self.main(images)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
