"""The optimizer step of both stages: learning rate, backward pass, gradient clipping, update."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medunifier.shared.errors import UserError
from medunifier.shared.training.config import OptimConfig
from medunifier.shared.training.distributed import all_reduce_max, collective_device

if TYPE_CHECKING:
    from accelerate import Accelerator


LR_SCALE = "lr_scale"
"""Key of an optimizer's group, see :func:`lr_scale`."""


class OptimizerStep:
    """Update one network from its loss; call it once a micro-batch, within ``accelerator.accumulate(network)``.

    Args:
        accelerator: prepared the network and its optimizers, and defines where an accumulation ends.
        network: prepared; its gradient is clipped as a whole.
        optimizers: of disjoint parts of the network; all have the same learning rate.
        config: schedule of the learning rate and bound on the gradient norm.
        steps: length of the whole training.

    Attributes:
        gradient_norm: of the last update, before clipping; None before the first.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        network: nn.Module,
        optimizers: Sequence[Any],
        config: OptimConfig,
        steps: int,
    ) -> None:
        self.accelerator, self.network, self.optimizers = accelerator, network, optimizers
        self._parameters = list(network.parameters())  # to collect them in each step would take the host milliseconds
        self.config, self.steps = config, steps
        self.gradient_norm: Tensor | None = None

    def __call__(self, loss: Tensor, step: int) -> None:
        """Differentiate ``loss``; at the last micro-batch of ``step`` also clip, update and reset the gradients."""
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            for optimizer in self.optimizers:
                _forget_frozen(optimizer)
            bound = self.config.max_grad_norm or float("inf")
            self.gradient_norm = self.accelerator.clip_grad_norm_(self._parameters, bound)
        for optimizer in self.optimizers:  # Accelerate's wrappers do nothing before the last micro-batch
            set_rate(optimizer, self.config.rate(step, self.steps))
            optimizer.step()
            optimizer.zero_grad()

    def figures(self, step: int) -> dict[str, Tensor | float]:
        """Return ``gradient_norm`` and ``lr`` of an update that was made at ``step``, for the log."""
        assert self.gradient_norm is not None, "no update yet"  # noqa: S101 - narrows a type
        return {"gradient_norm": self.gradient_norm, "lr": self.config.rate(step, self.steps)}


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of every group. Accelerate would advance a scheduler once per process."""
    for group in optimizer.param_groups:
        group["lr"] = rate * lr_scale(group)


def lr_scale(group: Mapping[str, Any]) -> float:
    """Return the learning rate of a group of parameters as a fraction of the schedule's; 0 = frozen."""
    scale: float = group.get(LR_SCALE, 1.0)
    return scale


def _forget_frozen(optimizer: Any) -> None:
    """Set the gradients of frozen parameters to 0, so that they are no part of the norm that is clipped."""
    for group in optimizer.param_groups:
        if lr_scale(group):  # first, since the host visits no parameter then
            continue
        if gradients := [parameter.grad for parameter in group["params"] if parameter.grad is not None]:
            torch._foreach_zero_(gradients)


class FiniteCheck:
    """Find the first step at which a figure was not finite; the device is waited for in :meth:`check` alone.

    A comparison on the host in each step would let the device run dry until the next kernels are launched.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def add(self, figures: Mapping[str, Tensor | float], step: int) -> None:
        """Record the tensors among ``figures``, scalars on any device, that are not finite at ``step``."""
        for name, value in figures.items():
            if isinstance(value, Tensor):
                first = torch.where(value.detach().isfinite(), _NEVER, step)
                self._first[name] = torch.minimum(self._first[name], first) if name in self._first else first

    def check(self) -> None:
        """Raise an error if any figure of any process was not finite. Call it on all processes.

        Raises:
            UserError: naming the first step and its figures that were not finite.
        """
        names = sorted(self._first)
        if not names:
            return
        first = -all_reduce_max(-torch.stack([self._first[name].to(collective_device()) for name in names]))
        step = int(first.min())
        if step < _NEVER:
            bad = [name for name, value in zip(names, first.tolist(), strict=True) if value == step]
            raise UserError(
                f"step {step}: {', '.join(bad)} not finite; the last checkpoint is older and intact. "
                "Lower the learning rate or look at the data of this step"
            )


_NEVER = 2**31 - 1
