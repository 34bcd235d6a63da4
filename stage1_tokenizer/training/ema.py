"""Exponential moving average (EMA) of weights in float32: the weights that are validated and exported."""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Averaged = TypeVar("Averaged", bound=nn.Module)


class ExponentialMovingAverage(Generic[Averaged]):
    """Average a module's parameters over the optimizer steps and copy its buffers. Saved with each checkpoint.

    Args:
        module: the module in training.
        decay: per step. Step t uses at most (1 + t) / (10 + t), so that the random initialization is soon forgotten.
    """

    def __init__(self, module: Averaged, decay: float) -> None:
        self.module: Averaged = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        """Move the average towards ``module``; call it after each optimizer step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in module.parameters()], 1 - decay)
        for averaged, current in zip(self.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(current)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.steps = int(state["steps"])
