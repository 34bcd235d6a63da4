"""Memory of a training: parameters are counted, activations are measured on the ``meta`` device.

A model is built on torch's ``meta`` device and run forward once, adding up what autograd would save for the backward
pass. Only the overhead is not measured: allocator, cuDNN workspace, perceptual network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medunifier.shared.command import announce
from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.hardware import GIB, memory_and_free

TRAINING_BYTES = 16
"""Bytes per parameter in training: float32 weight and gradient, and two AdamW moments."""


@dataclass(frozen=True)
class Size:
    """Memory of a configuration.

    Attributes:
        name: ``stage1/cxr_f16``.
        parameters: number of trainable parameters.
        state: bytes of weights, gradients and optimizer state in training.
        sample: bytes of activations per study in training, at the preset's precision.
        use: bytes of the weights alone, in float32.
        batch: the preset's batch size per process.
    """

    name: str
    parameters: int
    state: int
    sample: int
    use: int
    batch: int

    def largest_batch(self, memory: int) -> int:
        """Return the largest batch size that fits into ``memory`` bytes; 0 if not even the state fits."""
        return max(0, (memory - self.state) // max(self.sample, 1))


def training_size(name: str, model: nn.Module, kept: int, loop: LoopConfig, extra: int = 0) -> Size:
    """Return the size of a model whose forward pass of one study keeps ``kept`` bytes in float32.

    Args:
        name: of the result.
        model: on the ``meta`` device.
        kept: bytes of activations of a study.
        loop: precision and batch size.
        extra: bytes per parameter besides :data:`TRAINING_BYTES`.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    sample = kept // 2 if loop.mixed_precision == "bf16" else kept
    return Size(name, parameters, parameters * (TRAINING_BYTES + extra), sample, weights, loop.batch_size)


def warn_if_too_large(size: Size, loop: LoopConfig) -> None:
    """Print one line if the estimate exceeds the free memory of the accelerator, or of this machine without one."""
    if torch.cuda.is_available():
        place, free = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    else:
        place, free = "this machine", memory_and_free()[1]
    need = size.state + size.sample * size.batch
    if not free or need <= free:
        return
    batch, whole = size.largest_batch(free), size.batch * loop.accumulation
    while batch and whole % batch:
        batch -= 1
    remedy = f"--loop.batch_size {batch} --loop.accumulation {whole // batch}" if batch else "choose a smaller preset"
    millions, activations = size.parameters / 1e6, size.sample * size.batch / GIB
    announce(
        f"warning: this training needs about {need / GIB:.1f} GiB ({size.state / GIB:.1f} for {millions:.1f} M "
        f"parameters with gradients and optimizer, {activations:.1f} for activations), and {place} has "
        f"{free / GIB:.1f} GiB free: {remedy} (medunifier doctor lists what fits)"
    )


def bytes_kept(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Return the bytes of activations that autograd saves for the backward pass of ``forward``, each storage once."""
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # referenced, so that no later storage reuses its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
