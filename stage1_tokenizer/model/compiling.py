"""torch.compile for methods of modules with convolutions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compile_method(module: nn.Module, name: str) -> None:
    """Compile a method: one graph for each shape of its arguments, without breaks.

    Call it after the module was copied and before DistributedDataParallel wraps it.
    """
    # DDP would split graphs at its gradient buckets, and fails on those with gradient checkpointing.
    torch._dynamo.config.optimize_ddp = False
    # PyTorch counts the graphs of a method over all instances and shapes; beyond its limit (8) the next is an error.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    # Static shapes: a training has one, and Inductor's C++ code generation fails on symbolic sizes of convolutions.
    # Channels last: Inductor returns to contiguous memory if one convolution halves the channels, as in a decoder.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"force_layout_optimization": True}
    setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=False, options=options))
