"""FSDP2: weights, gradients and optimizer state in shards, one a process (``configs/accelerate/fsdp2.yaml``).

Accelerate launches it, ``torch`` does it: Accelerate's own wrapping refuses processors without an accelerator, and
makes a unit of the head, whose weight is used here for either half of the ids without a call of the module. Each
decoder layer is a unit; everything else stays whole from the beginning of a step to its end.
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

from shared.distributed import is_main, world_size
from stage2_unified.model import MedUnifierForConditionalGeneration

_ASKED = "ACCELERATE_USE_FSDP"
_WEIGHTS, _OPTIMIZERS = "model.safetensors", "optimizers.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def take_over_fsdp() -> bool:
    """Whether ``accelerate launch`` was told to use FSDP; from here on Accelerate sees plain processes.

    Call it before an ``Accelerator`` is made.
    """
    asked = os.environ.pop(_ASKED, "false").lower() == "true"
    if asked and not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return asked


def shard(model: MedUnifierForConditionalGeneration, bf16: bool) -> None:
    """Cut the model up, in place, over all processes."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    whole = {model.log_scale}  # a scalar cannot be cut
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy, ignored_params=whole)
    register_fsdp_forward_method(model, "generate")
    model.log_scale.register_post_accumulate_grad_hook(_mean_over_processes)


def _mean_over_processes(parameter: Tensor) -> None:
    # Under accumulation the part that is a mean already stays what it is.
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= world_size()


def whole_model(model: MedUnifierForConditionalGeneration) -> MedUnifierForConditionalGeneration:
    """A copy of a sharded model that is not sharded; complete on the first process, which all must call it for."""
    weights = get_model_state_dict(model, options=_WHOLE)
    copy = MedUnifierForConditionalGeneration(model.config)
    if is_main():
        copy.load_state_dict(weights)
    return copy


def checkpoint_whole(
    accelerator: Accelerator, model: MedUnifierForConditionalGeneration, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Let ``save_state`` and ``load_state`` of a sharded training write and read whole tensors by name.

    So a checkpoint serves any number of processes, and its ``model.safetensors`` is that of a plain training.
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
