"""3 x 3 convolutions on a CPU by Winograd's minimal filtering, F(4 x 4, 3 x 3) (Lavin & Gray, 2016).

A tile of 4 x 4 outputs costs 36 multiplications a pair of channels in place of 144; what stands before and after are
additions on data that lie in the cache. Where there is a C compiler, all of it is one pass
(:mod:`stage1_tokenizer.compiled`): on a core with AVX2, 128 and 256 channels take 0.34 to 0.42 of the direct
convolution's time. Elsewhere each of PyTorch's operations goes over the data anew, and it is half to three quarters.

The sums are taken in another order and with factors up to 8, so an output differs from the direct one by some 1e-5 of
its spread (direct float32 by a quarter of that from float64): of codes that are nearly tied, few come out otherwise.

In training the output and the gradient to the input are computed so, both being convolutions; the gradient to the
kernel is PyTorch's. The kernel is transformed anew each time, so it needs the compiled pass and enough tiles to pay.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from stage1_tokenizer.compiled import CHANNELS, OUTPUTS, convolve, kernels, panels
from stage1_tokenizer.group_norm import CompiledGroupNorm

MIN_CHANNELS = 64
"""Below this the additions cost more than the multiplications that they save."""

TILE_CHANNELS = 2**16
"""Tiles at a time, times channels: their 36 values each fill 9 MiB before and 9 MiB after the product."""

MIN_TILES = 32
"""In training: with fewer, to transform and to read the kernel takes longer than the direct convolution."""

_KERNEL = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)


def transformed_kernel(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (36, C, O): the kernel at the 6 x 6 points, across before down."""
    points = torch.einsum("ia,ocab,jb->jico", _KERNEL.to(weight.device), weight.double(), _KERNEL.to(weight.device))
    return points.flatten(0, 1).float().contiguous()


def _transform_input(d: list[Tensor], out: Tensor, spare: Tensor) -> None:
    """Six values along one direction to the six points; ``out[k]`` and the two ``spare`` have the shape of one."""
    a, b = spare
    torch.sub(d[4], d[2], alpha=4, out=a)
    torch.sub(d[3], d[1], alpha=4, out=b)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.sub(a, b, alpha=2, out=out[4])
    torch.sub(d[4], d[2], alpha=5, out=out[0])
    out[0].add_(d[0], alpha=4)
    torch.sub(d[5], d[3], alpha=5, out=out[5])
    out[5].add_(d[1], alpha=4)


def _transform_output(m: Tensor, out: list[Tensor], spare: Tensor) -> None:
    """Six points along one direction to four outputs."""
    a, b, c, e = spare
    torch.add(m[1], m[2], out=a)
    torch.sub(m[1], m[2], out=b)
    torch.add(m[3], m[4], out=c)
    torch.sub(m[3], m[4], out=e)
    torch.add(m[0], a, out=out[0]).add_(c)
    torch.add(b, e, alpha=2, out=out[1])
    torch.add(a, c, alpha=4, out=out[2])
    torch.add(b, e, alpha=8, out=out[3]).add_(m[5])


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 and padding 1, with the parameters (and their names) of the one it replaces.

    Where it cannot be used (a gradient is wanted, autocast, another device, sides that are no multiple of 4) it is
    that convolution.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "WinogradConv2d":
        """The same convolution; the parameters are shared."""
        with torch.device("meta"):
            new = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None)
        new.weight, new.bias = layer.weight, layer.bias
        new._points = transformed_kernel(layer.weight.detach())
        fits = layer.in_channels % CHANNELS == 0 and layer.out_channels % OUTPUTS == 0
        new.compiled = fits and layer.weight.device.type == "cpu" and kernels() is not None
        if new.compiled:
            new._points = panels(new._points)
        return new.train(layer.training)

    _points: Tensor
    compiled: bool
    """In one pass, which does not take the swish on the way: the norm before it does."""

    def forward(self, x: Tensor, swish: bool = False, add: Tensor | None = None) -> Tensor:
        """The convolution of ``x``, or of its swish, which is then taken where the values lie in the cache anyway.

        ``add`` (B, O, H, W) is added to it.
        """
        plain = x.device.type == self._points.device.type == "cpu" and x.dtype == torch.float32
        if (
            not plain
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or x.shape[2] % 4
            or x.shape[3] % 4
        ):
            result = super().forward(silu(x) if swish else x)
            return result if add is None else result + add
        rows = x.permute(0, 2, 3, 1)  # as it lies in memory
        if self.compiled:
            rows = (silu(rows) if swish else rows).contiguous()
            more = None if add is None else add.permute(0, 2, 3, 1).contiguous()
            return convolve(rows, self._points, self.bias, more).permute(0, 3, 1, 2)
        result = _convolve(rows, self._points, self.bias, swish).permute(0, 3, 1, 2)
        return result if add is None else result.add_(add)


def _convolve(x: Tensor, points: Tensor, bias: Tensor | None, swish: bool) -> Tensor:
    """(B, H, W, C) -> (B, H, W, O), some rows of tiles of one image at a time, or some small images."""
    batch, height, width, channels = x.shape
    outputs, across = points.shape[2], width // 4
    tiles = max(1, TILE_CHANNELS // max(channels, outputs))
    down = max(1, min(height // 4, tiles // across))
    images = max(1, min(batch, tiles // (across * down))) if down == height // 4 else 1
    result = x.new_empty(batch, height, width, outputs)
    for first in range(0, batch, images):
        group = x[first : first + images]
        for row in range(0, height, 4 * down):
            rows = min(4 * down, height - row)
            strip = x.new_zeros(len(group), rows + 2, width + 2, channels)
            low, high = max(row - 1, 0), min(row + rows + 1, height)
            strip[:, low - row + 1 : high - row + 1, 1:-1] = group[:, low:high]
            if swish:
                silu(strip, inplace=True)  # of the zeros around it too, which stay zeros
            _convolve_strip(strip, points, bias, result[first : first + images, row : row + rows])
    return result


def _convolve_strip(strip: Tensor, points: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """(g, 4 t + 2, 4 s + 2, C) with its border -> ``out`` (g, 4 t, 4 s, O)."""
    g, height, width, channels = strip.shape
    t, s, outputs = height // 4, width // 4, points.shape[2]
    new = strip.new_empty
    lines = new(6, g, t, width, channels)
    _transform_input([strip[:, k : k + 4 * t - 3 : 4] for k in range(6)], lines, new(2, g, t, width, channels))
    values = new(6, 6, g, t, s, channels)  # across, down, tile, channel
    columns = [lines[:, :, :, k : k + 4 * s - 3 : 4] for k in range(6)]
    _transform_input(columns, values, new(2, 6, g, t, s, channels))
    products = torch.bmm(values.view(36, g * t * s, channels), points).view(6, 6, g, t, s, outputs)
    half = new(4, 6, g, t, s, outputs)
    _transform_output(products, list(half), new(4, 6, g, t, s, outputs))
    tiles = out.unflatten(1, (t, 4)).unflatten(3, (s, 4))  # (g, t, 4, s, 4, O)
    places = [tiles[:, :, k].permute(3, 0, 1, 2, 4) for k in range(4)]
    _transform_output(half.transpose(0, 1), places, new(4, 4, g, t, s, outputs))
    if bias is not None:
        out.add_(bias)


class TrainedWinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 and padding 1 that is trained, with the parameters of the one it replaces.

    Where it cannot be used (autocast, another device, sides that are no multiple of 4, too few tiles) it is that
    convolution.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "TrainedWinogradConv2d":
        """The same convolution; the parameters are shared."""
        with torch.device("meta"):
            new = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None)
        new.weight, new.bias = layer.weight, layer.bias
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        batch, _, height, width = x.shape
        if (
            x.device.type != "cpu"
            or x.dtype != torch.float32
            or height % 4
            or width % 4
            or batch * height * width < 16 * MIN_TILES
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x)
        result: Tensor = _TrainedConvolution.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _TrainedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.outputs = None if bias is None else list(bias.shape)
        rows = x.permute(0, 2, 3, 1).contiguous()
        return convolve(rows, _trained_panels(weight), bias).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        to_x = None
        if of_x:
            rows = gradient.permute(0, 2, 3, 1).contiguous()
            turned = weight.flip(2, 3).transpose(0, 1)
            to_x = convolve(rows, _trained_panels(turned), None).permute(0, 3, 1, 2)
        _, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.outputs, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, of_weight, of_bias)
        )
        return to_x, to_weight, to_bias


_scratch = threading.local()


def _trained_panels(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (36, O / 16, C, 16) in float32: a product that writes in the order in which it is read.

    The result lies in memory that this thread's next call writes over: 36 fresh values a pair of channels, 9 MiB for
    256 of them, would cost more to be given by the system than to be filled.
    """
    outputs, channels = weight.shape[:2]
    places = weight.detach().unflatten(0, (-1, OUTPUTS)).permute(3, 4, 0, 2, 1).reshape(9, -1)
    kernel = _KERNEL.float()
    points = torch.einsum("ia,jb->jiab", kernel, kernel).reshape(36, 9)
    size = 36 * weight.shape[0] * weight.shape[1]
    if getattr(_scratch, "memory", torch.empty(0)).numel() < size:
        _scratch.memory = torch.empty(size)
    filled = torch.mm(points, places, out=_scratch.memory[:size].view(36, -1))
    return filled.view(36, outputs // OUTPUTS, channels, OUTPUTS)


def train_by_winograd(module: nn.Module) -> int:
    """Replace the convolutions below ``module`` that can be trained so; returns how many: 0 without a compiler."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            widths = child.in_channels % OUTPUTS == child.out_channels % OUTPUTS == 0
            if widths and _pays(child) and kernels() is not None:
                setattr(module, name, TrainedWinogradConv2d.of(child))
                count += 1
        else:
            count += train_by_winograd(child)
    return count


def _pays(layer: nn.Conv2d) -> bool:
    fits = (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
    return fits and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS


def use_winograd(module: nn.Module) -> int:
    """Replace the convolutions below ``module`` for which it pays, and the norms; returns how many convolutions."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            if _pays(child):
                setattr(module, name, WinogradConv2d.of(child))
                count += 1
        elif isinstance(child, nn.GroupNorm) and kernels() is not None:
            setattr(module, name, CompiledGroupNorm.of(child))
        else:
            count += use_winograd(child)
    return count
