"""Muon: momentum with orthogonalised updates, for the decoder's hidden matrices.

Keller Jordan et al., 2024; the learning rate is scaled as in Liu et al., "Muon is scalable for LLM training" (2025),
so that an update has about the size of AdamW's and both can share one learning rate and schedule.

``torch.optim.Muon`` computes the same, matrix by matrix and always in bfloat16, which CPUs without bfloat16 units
emulate: there a step of 28 matrices of 160 x 160 took 2.8 s, one of the demo's 28 here 0.05 s. This one updates all
matrices of one shape at once, in float32 on CPUs. A test compares the two.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from medunifier.shared.errors import UserError

# Newton-Schulz coefficients: five iterations bring singular values to about 0.7 to 1.2, not exactly to 1.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_ADAM_RMS = 0.2  # of a typical AdamW update, in units of the learning rate (Liu et al., 2025, section 2.2)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return (…, m, n) matrices with the same singular vectors and all singular values near 1 (Newton-Schulz)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _LINEAR * x + (_CUBIC * gram + _QUINTIC * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon optimizer for matrices that map hidden states to hidden states; use AdamW for other parameters.

    Args:
        params: unsharded matrices, since an update needs the singular values of the whole matrix.
        lr: learning rate, shared with AdamW.
        momentum: decay of the running mean of gradients (Nesterov).
        weight_decay: decoupled.

    Raises:
        UserError: if a parameter is sharded over processes (FSDP).
        ValueError: if a parameter is not a matrix.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run one update."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if isinstance(parameters[0], DTensor):
            raise UserError("optim.kind muon needs unsharded matrices, and FSDP shards them: use optim.kind adamw")
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient = parameter.grad
            assert gradient is not None  # parameters without one were skipped  # noqa: S101 - narrows a type
            mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(mean, group["momentum"]))
        stacked = torch.stack(directions)
        update = orthogonalise(stacked.bfloat16() if stacked.is_cuda else stacked).to(stacked.dtype)
        rate = group["lr"] * _ADAM_RMS * max(parameters[0].shape) ** 0.5
        for parameter, direction in zip(parameters, update, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-rate)
