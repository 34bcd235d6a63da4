"""A bfloat16 copy of a model for decoding on GPUs, which read every weight once per token."""

import copy

import torch
from torch import nn

from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration


def bfloat16_copy(model: MedUnifierForConditionalGeneration) -> MedUnifierForConditionalGeneration:
    """Return a copy with parameters and codebook in bfloat16.

    Autocast would cast the weights in every step. Other buffers keep their precision: the frequencies of the rotary
    embedding are wrong by whole radians at late positions if they are rounded.
    """
    converted: dict[int, torch.Tensor] = {
        id(weight): nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        for weight in model.parameters()
    }
    converted[id(model.codebook)] = model.codebook.to(torch.bfloat16)
    # What is in the dictionary is not copied but taken from it: no second copy in float32 is made.
    duplicate = copy.deepcopy(model, converted)
    duplicate.uncompile_layers()
    return duplicate
