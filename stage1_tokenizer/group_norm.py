"""GroupNorm, and the swish behind it, on a CPU for inference: two passes over the data where PyTorch makes five.

PyTorch reads for the moments, reads and writes for the norm, and again for the swish. Here the second pass does the
rest while a value is in a register (``group_norm.c``, by :mod:`stage1_tokenizer.compiled`). Sums over more than 64
pixels are double, so the variance of values far from zero does not drown in their square.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stage1_tokenizer.compiled import CHANNELS, normalise


class CompiledGroupNorm(nn.GroupNorm):
    """A GroupNorm with the parameters (and their names) of the one it replaces.

    It needs the compiled kernels. Where it cannot be used (a gradient is wanted, autocast, another device) it is that
    GroupNorm.
    """

    @classmethod
    def of(cls, layer: nn.GroupNorm) -> "CompiledGroupNorm":
        """The same norm; the parameters are shared."""
        with torch.device("meta"):
            new = cls(layer.num_groups, layer.num_channels, layer.eps)
        new.weight, new.bias = layer.weight, layer.bias
        return new.train(layer.training)

    def forward(self, x: Tensor, swish: bool = False, overwrite: bool = False) -> Tensor:
        """(B, C, H, W) normalised, and its swish taken if asked for; ``overwrite`` allows to put it in x's place."""
        if (
            x.device.type != "cpu"
            or x.dtype != torch.float32
            or x.shape[1] % CHANNELS
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            normal = super().forward(x)
            return silu(normal) if swish else normal
        rows = x.permute(0, 2, 3, 1)
        own = not rows.is_contiguous()
        rows = rows.contiguous()
        out = rows if overwrite or own else torch.empty_like(rows)
        normalise(rows, out, self.num_groups, self.weight, self.bias, self.eps, swish)
        return out.permute(0, 3, 1, 2)
