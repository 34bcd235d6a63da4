"""EfficientNet-Lite (Lite0 to Lite4) from a state dict with timm's names, without timm.

The widths and the number of blocks are read from the tensors; the strides are those of the family. Convolutions are
padded symmetrically and batch norms have torch's epsilon, as in timm's `efficientnet_lite0`; its `tf_` variants,
ported from TensorFlow, differ in both and are not supported.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Of the first block of each stage; the stem has stride 2."""
HEAD = ("conv_head.", "bn2.", "classifier.")
"""Prefixes of the layers after the last block, which are not built."""


class _Block(nn.Module):
    """Inverted residual (conv_pw, conv_dw, conv_pwl), or without expansion (conv_dw, conv_pw), with timm's names."""

    def __init__(self, widths: Mapping[str, tuple[int, ...]], stride: int) -> None:
        super().__init__()
        self._order = ("conv_pw", "conv_dw", "conv_pwl") if "conv_pwl" in widths else ("conv_dw", "conv_pw")
        for number, name in enumerate(self._order, start=1):
            out, each, kernel, _ = widths[name]
            depthwise = name == "conv_dw"
            groups, step = (out, stride) if depthwise else (1, 1)
            setattr(self, name, nn.Conv2d(each * groups, out, kernel, step, kernel // 2, groups=groups, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(out))
        first, last = getattr(self, self._order[0]), getattr(self, self._order[-1])
        self._residual = stride == 1 and first.in_channels == last.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, name in enumerate(self._order, start=1):
            y = getattr(self, f"bn{number}")(getattr(self, name)(y))
            if number < len(self._order):
                y = nn.functional.relu6(y)
        return x + y if self._residual else y


class EfficientNetLite(nn.Module):
    """(B, 1 or 3, S, S) -> (B, C, S / 32, S / 32), the output of the last block.

    Args:
        state: the file's tensors, of which only the shapes are read.

    Raises:
        KeyError, ValueError, IndexError: if they are not those of an EfficientNet-Lite.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, self.channels, kernel, _ = state["conv_stem.weight"].shape
        self.conv_stem = nn.Conv2d(self.channels, width, kernel, 2, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
        for key, value in state.items():
            if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(conv_\w+)\.weight", key):
                shapes.setdefault((int(match[1]), int(match[2])), {})[match[3]] = tuple(value.shape)
        stages: list[list[nn.Module]] = [[] for _ in STRIDES]
        for (stage, number), widths in sorted(shapes.items()):
            stages[stage].append(_Block(widths, STRIDES[stage] if number == 0 else 1))
        self.blocks = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(nn.functional.relu6(self.bn1(self.conv_stem(x))))
        return y
