"""Blocks of the encoder and decoder, with taming's arithmetic and key names, so that its weights load unchanged.

Source followed: CompVis/taming-transformers, ``taming/modules/diffusionmodules/model.py``. ``nn.Sequential`` and
other wrappers are avoided, since every attribute name is part of a checkpoint key.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu
from torch.utils.checkpoint import checkpoint


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm``, except that a bfloat16 or float16 map stays one: (B, C, H, W) -> the same shape and dtype.

    On a GPU autocast runs ``nn.GroupNorm`` in float32 and returns a float32 copy of the map, twice its size. (On a
    CPU PyTorch's kernel reads and writes bfloat16.)
    """

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype in (torch.bfloat16, torch.float16)
        return self.normalize_half(x) if half and x.device.type != "cpu" else super().forward(x)

    def normalize_half(self, x: Tensor) -> Tensor:
        """Compute float32 statistics, then apply one scale and shift per image and channel to the map.

        A compiler fuses conversion, normalization and the activation that follows into one pass. The statistics are
        reduced to channels before groups: in channels-last memory neighbouring channels are neighbours, and a group
        is not contiguous.
        """
        batch, channels = x.shape[:2]
        variances, means = torch.var_mean(x.float(), dim=(2, 3), correction=0)  # (B, C)
        means = means.view(batch, self.num_groups, -1)
        mean = means.mean(dim=2, keepdim=True)
        # Of a group: the mean of the channels' variances and the variance of their means.
        variance = (variances.view_as(means) + (means - mean).square()).mean(dim=2, keepdim=True)  # (B, groups, 1)
        scale = (variance + self.eps).rsqrt() * self.weight.float().view(1, self.num_groups, -1)
        shift = self.bias.float().view(1, self.num_groups, -1) - mean * scale
        return (x.float() * scale.view(batch, channels, 1, 1) + shift.view(batch, channels, 1, 1)).to(x.dtype)


def group_norm(channels: int, groups: int) -> GroupNorm:
    """Return a GroupNorm with taming's epsilon."""
    return GroupNorm(groups, channels, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(x)``; in place without gradients: a CPU encodes a third faster (fewer page faults)."""
    return silu(x, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """Twice norm, swish and 3x3 convolution, with a residual connection: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual connection: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, C, H, W) -> (B, 1, H*W, C): one head, scaled by 1 / sqrt(C)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the resolution. Zeros are padded at the right and bottom only, unlike PyTorch's symmetric padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class CheckpointedBlocks(nn.Module):
    """Base of the modules that apply their blocks with optional gradient checkpointing.

    The activations inside the blocks (two norms, two convolutions) take most of a training step's memory. With
    ``gradient_checkpointing`` only the blocks' inputs are stored and the backward pass recomputes the rest: the same
    gradients, about a third more FLOPs (Chen et al., "Training deep nets with sublinear memory cost", 2016).
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return ``block(x)``."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(block, x, use_reentrant=False)
            return result
        return block(x)


class MidBlock(CheckpointedBlocks):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups, dropout)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.run_block(self.block_2, self.run_block(self.attn_1, self.run_block(self.block_1, x)))


class Level(CheckpointedBlocks):
    """Residual blocks of one resolution, each followed by attention if the level has attention, then resampling.

    Args:
        widths: input and output channels of each residual block.
        attention: whether attention follows each block.
        groups: groups of the GroupNorms.
        dropout: dropout in the residual blocks.
        resample: the ``Downsample`` or ``Upsample`` at the end, or None.
    """

    def __init__(
        self, widths: list[tuple[int, int]], attention: bool, groups: int, dropout: float, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(width_in, width_out, groups, dropout) for width_in, width_out in widths
        )
        self.attn = nn.ModuleList(AttnBlock(width_out, groups) for _, width_out in widths if attention)
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif isinstance(resample, Upsample):
            self.upsample = resample
        self._resample = "downsample" if isinstance(resample, Downsample) else "upsample" if resample else ""

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = self.run_block(block, x)
            if self.attn:
                x = self.run_block(self.attn[number], x)
        return getattr(self, self._resample)(x) if self._resample else x


class Encoder(nn.Module):
    """(B, in, H, W) -> (B, z, H / 2^(levels - 1), W / 2^(levels - 1))."""

    def __init__(
        self,
        *,
        in_channels: int,
        z_channels: int,
        resolution: int,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...],
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for level, mult in enumerate(ch_mult):
            widths = [(width if number == 0 else ch * mult, ch * mult) for number in range(num_res_blocks)]
            width = ch * mult
            resample = Downsample(width) if level < len(ch_mult) - 1 else None
            self.down.append(Level(widths, resolution >> level in attn_resolutions, groups, dropout, resample))
        self.mid = MidBlock(width, groups, dropout)
        self.norm_out = group_norm(width, groups)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(swish(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, z, h, w) -> (B, out, h * 2^(levels - 1), w * 2^(levels - 1)); no clamp at the end."""

    def __init__(
        self,
        *,
        z_channels: int,
        out_ch: int,
        resolution: int,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...],
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = MidBlock(width, groups, dropout)
        levels: list[Level] = []
        for level in reversed(range(len(ch_mult))):  # coarse to fine; `up.0` is the finest
            out = ch * ch_mult[level]
            widths = [(width if number == 0 else out, out) for number in range(num_res_blocks + 1)]
            width = out
            resample = Upsample(width) if level else None
            levels.insert(0, Level(widths, resolution >> level in attn_resolutions, groups, dropout, resample))
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(width, groups)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.features(z))

    def features(self, z: Tensor) -> Tensor:
        """Return the input of the last convolution, (B, ch * ch_mult[0], h * 2^(levels - 1), w * 2^(levels - 1))."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return swish(self.norm_out(h))
