"""Muon: momentum with orthogonalised updates, for the decoder's hidden matrices.

Keller Jordan et al., 2024; the learning rate is scaled as in Liu et al., "Muon is scalable for LLM training" (2025),
so that an update has about the size of AdamW's and both can share one learning rate and schedule.

``torch.optim.Muon`` computes the same matrix by matrix: 1,932 kernels a step for the 84 matrices of 12 layers, 124
here, where all matrices of one shape are updated together. It also iterates in bfloat16 everywhere, which CPUs
without bfloat16 units emulate: on one thread a step of the 35 matrices of ``phantom_64`` took 2.8 s, in float32 here
0.2 s. A test compares the two.
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
_ITERATION_DTYPE = {"cuda": torch.bfloat16}  # by kind of device; elsewhere the weights' own


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return (N, m, n) matrices with the same singular vectors and all singular values near 1 (Newton-Schulz)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x.mT @ x if tall else x @ x.mT  # of the shorter side
        factor = torch.baddbmm(gram, gram, gram, beta=_CUBIC, alpha=_QUINTIC)
        # On the diagonal the linear term costs no pass over x. In bfloat16 the result is then rounded to 2 %, not to
        # 1 %, next to the 20 % by which the polynomial misses 1.
        factor.diagonal(dim1=-2, dim2=-1).add_(_LINEAR)
        x = x @ factor if tall else factor @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon optimizer for matrices that map hidden states to hidden states; use AdamW for other parameters.

    A step reads nothing back from the device.

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
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")
                if isinstance(parameter, DTensor):
                    raise UserError(
                        "optim.kind muon needs unsharded matrices, and FSDP shards them: use optim.kind adamw"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)  # of one shape, on one device
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, means = [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            means.append(state["momentum"])
            assert parameter.grad is not None  # parameters without one were skipped  # noqa: S101 - narrows a type
            gradients.append(parameter.grad)
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        directions = list(torch._foreach_lerp(gradients, means, group["momentum"]))
        first = parameters[0]
        dtype = _ITERATION_DTYPE.get(first.device.type, first.dtype)
        stacked = torch.empty((len(parameters), *first.shape), dtype=dtype, device=first.device)  # (N, m, n)
        torch._foreach_copy_(list(stacked.unbind()), directions)
        torch._foreach_copy_(directions, list(orthogonalise(stacked).unbind()))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"] * _ADAM_RMS * max(first.shape) ** 0.5)
