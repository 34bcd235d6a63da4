"""torch.compile in both stages: when it is used, and how a method is compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medunifier.shared.training.config import CompileSetting


def use_compile(setting: CompileSetting, device: torch.device | str) -> bool:
    """Return whether to compile for ``device``."""
    return torch.device(device).type == "cuda" if setting == "auto" else setting


def compile_method(module: nn.Module, name: str) -> None:
    """Compile a method of a module with convolutions: one graph for each shape of its arguments, without breaks.

    Call it after the module was copied and before DistributedDataParallel wraps it.
    """
    # DDP would split graphs at its gradient buckets, and fails on those with gradient checkpointing.
    torch._dynamo.config.optimize_ddp = False
    # Static shapes: a training has one, and Inductor's C++ code generation fails on symbolic sizes of convolutions.
    # Channels last: Inductor returns to contiguous memory if one convolution halves the channels, as in a decoder.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"force_layout_optimization": True}
    setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=False, options=options))
