"""The optimizer step of both stages: learning rate, backward pass, gradient clipping, update."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medunifier.shared.errors import UserError
from medunifier.shared.training.config import OptimConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


class OptimizerStep:
    """Update one network from its losses; call it once a micro-batch, within ``accelerator.accumulate(network)``.

    Args:
        accelerator: prepared the network and its optimizers, and defines where an accumulation ends.
        network: its gradient is clipped as a whole.
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
        self.config, self.steps = config, steps
        self.gradient_norm: Tensor | None = None

    def __call__(self, loss: Tensor, losses: Mapping[str, Tensor], step: int) -> None:
        """Differentiate ``loss``; at the last micro-batch of ``step`` also clip, update and reset the gradients.

        Raises:
            UserError: before the update, if any of ``losses`` is not finite.
        """
        check_finite(losses, step + 1)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            bound = self.config.max_grad_norm or float("inf")
            self.gradient_norm = self.accelerator.clip_grad_norm_(self.network.parameters(), bound)
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
        group["lr"] = rate


def check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Stop before an update with losses that are not finite.

    Raises:
        UserError: naming them.
    """
    bad = [f"{name} = {float(value.detach())}" for name, value in losses.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(
            f"step {step}: {', '.join(bad)}; the weights are untouched since the last checkpoint. "
            "Lower the learning rate or look at the data of this step"
        )
