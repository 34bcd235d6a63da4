"""Exponential moving average (EMA) of weights in float32: the weights that are validated and exported.

An average over the last steps has less of the noise of single steps (Polyak and Juditsky, 1992).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from medunifier.shared.training.distributed import is_main

Averaged = TypeVar("Averaged", bound=nn.Module)


class WeightAverage:
    """Average tensors over the optimizer steps, on their device and without host reads.

    Args:
        averages: their initial values, float32; they are changed in place.
        decay: per step. Step t uses at most (1 + t) / (10 + t), so that the random initialization is soon forgotten.
    """

    def __init__(self, averages: Sequence[Tensor], decay: float) -> None:
        self.averages, self.decay, self.steps = list(averages), decay, 0

    @torch.no_grad()
    def move_towards(self, current: Sequence[Tensor]) -> None:
        """Move each average towards its tensor in ``current``; call it once per optimizer step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        # Of a sharded tensor each process averages its own shard.
        torch._foreach_lerp_([_local(t) for t in self.averages], [_local(t.detach()) for t in current], 1 - decay)
        self.steps += 1


class AveragedModule(WeightAverage, Generic[Averaged]):
    """A second module with averaged parameters and the current buffers. Saved with each checkpoint.

    For a module that is evaluated otherwise than it is trained (uncompiled, say); its buffers may change in training.

    Args:
        module: the module in training.
        decay: as for :class:`WeightAverage`.
    """

    def __init__(self, module: Averaged, decay: float) -> None:
        self.module: Averaged = copy.deepcopy(module).eval().requires_grad_(False)
        super().__init__(list(self.module.parameters()), decay)

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        """Average the parameters of ``module`` and copy its buffers; call it after each optimizer step."""
        self.move_towards(list(module.parameters()))
        for averaged, current in zip(self.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.steps = int(state["steps"])


class SwappedAverage(WeightAverage):
    """Averages beside the parameters of one module, which takes them over for a while. Saved with each checkpoint.

    Values are exchanged in place: compiled graphs stay valid, optimizers keep their parameters, and no second module
    is in memory, only 4 bytes per parameter and a copy of the largest one during the exchange. Parameters may be
    sharded (DTensor); a checkpoint has whole tensors, so that it loads on any number of processes.

    Args:
        parameters: in training, by name, float32; those of a sharded module as the optimizer has them.
        decay: as for :class:`WeightAverage`.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters = dict(parameters)
        super().__init__([parameter.detach().clone() for parameter in self._parameters.values()], decay)

    def update(self) -> None:
        """Average the parameters; call it after each optimizer step."""
        self.move_towards(list(self._parameters.values()))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the parameters have the averaged values within the context; there they must not be trained."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters.values(), self.averages, strict=True):
            kept = _local(parameter).clone()
            _local(parameter).copy_(_local(average))
            _local(average).copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return whole tensors by name, of a sharded module on the first process alone. Call it on all processes."""
        whole: dict[str, Tensor] = {}
        for name, average in zip(self._parameters, self.averages, strict=True):
            tensor = average.full_tensor() if isinstance(average, DTensor) else average
            if is_main():
                whole[name] = tensor.cpu() if isinstance(average, DTensor) else tensor
        return {"averages": whole, "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned, on any number of processes.

        Raises:
            KeyError: if it lacks a parameter.
        """
        for name, average in zip(self._parameters, self.averages, strict=True):
            saved = state["averages"][name]
            if isinstance(average, DTensor):
                saved = distribute_tensor(saved.to(average.device), average.device_mesh, average.placements)
            _local(average).copy_(_local(saved))
        self.steps = int(state["steps"])


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor, any other tensor unchanged; both share their memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
