"""FSDP2: weights, gradients and optimizer state sharded over processes (``configs/accelerate/fsdp2.yaml``).

Accelerate launches the processes and ``torch`` shards the model: Accelerate's wrapping rejects CPU-only machines, and
makes the head a unit, though its weight is used here (for text ids or for image codes) without calling the module.
Each decoder layer is a unit; all other parameters stay gathered for the whole step.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from medunifier.shared.training.distributed import is_main, world_size
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.training.four_objectives import FourObjectives

_ENABLED = "ACCELERATE_USE_FSDP"
_WEIGHTS, _OPTIMIZERS = "model.safetensors", "optimizers.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def take_over_fsdp() -> bool:
    """Return whether ``accelerate launch`` enabled FSDP, and hide it from Accelerate from here on.

    Call it before an ``Accelerator`` is made.
    """
    enabled = os.environ.pop(_ENABLED, "false").lower() == "true"
    if enabled and not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return enabled


def shard(objectives: FourObjectives, bf16: bool) -> None:
    """Shard the model over all processes, in place."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    logit_scale = objectives.model.logit_scale  # a scalar cannot be sharded
    for layer in objectives.model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(objectives, mp_policy=policy, ignored_params={logit_scale})
    register_fsdp_forward_method(objectives, "call_with_model")
    logit_scale.register_post_accumulate_grad_hook(_mean_over_processes)


def _mean_over_processes(parameter: Tensor) -> None:
    # Under accumulation the part that is averaged already does not change.
    assert parameter.grad is not None  # noqa: S101 - narrows a type
    dist.all_reduce(parameter.grad)
    parameter.grad /= world_size()


def whole_model(model: MedUnifierForConditionalGeneration) -> MedUnifierForConditionalGeneration:
    """Return an unsharded copy of a sharded model, complete on the first process. Call it on all processes."""
    weights = get_model_state_dict(model, options=_WHOLE)
    copy = MedUnifierForConditionalGeneration(model.config)
    if is_main():
        copy.load_state_dict(weights)
    return copy


def checkpoint_whole(
    accelerator: Accelerator, model: MedUnifierForConditionalGeneration, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Make ``save_state`` and ``load_state`` of a sharded training write and read whole tensors by name.

    A checkpoint then loads at any number of processes, and its ``model.safetensors`` equals an unsharded training's.
    """

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        whole: Any = get_model_state_dict(model, options=_WHOLE)  # tensors, though its type allows more
        states = [get_optimizer_state_dict(model, optimizer, options=_WHOLE) for optimizer in optimizers]
        if is_main():
            save_file(whole, Path(folder) / _WEIGHTS)
            torch.save(states, Path(folder) / _OPTIMIZERS)

    def load(models: list[Any], folder: str) -> None:
        options = StateDictOptions(full_state_dict=True)
        weights: dict[str, Any] = load_file(Path(folder) / _WEIGHTS)
        set_model_state_dict(model, weights, options=options)
        states = torch.load(Path(folder) / _OPTIMIZERS, map_location="cpu", weights_only=True)
        for optimizer, state in zip(optimizers, states, strict=True):
            set_optimizer_state_dict(model, optimizer, state, options=options)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
