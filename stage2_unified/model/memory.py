"""Memory that training the unified model takes, for ``medunifier doctor`` and the warning at the start."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.memory import Size, bytes_kept, training_size
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration

_BRANCHES = 3  # reports per image: the true one and two negatives


def unified_size(name: str, config: MedUnifierConfig, loop: LoopConfig, averaged: bool = False) -> Size:
    """Return the memory that training a model of this configuration takes; its longest sequence is assumed.

    The EMA of ``averaged`` weights is one more float32 per parameter.
    """
    config = copy.deepcopy(config)  # its attention is replaced below
    longest, report = config.text_config.max_position_embeddings, config.max_report_tokens
    with torch.device("meta"):
        model = MedUnifierForConditionalGeneration(config)
        sequence = torch.empty(1, longest, config.text_config.hidden_size)

    model.model.config._attn_implementation = _FUSED

    def forward() -> Tensor:
        hidden: Tensor = model.run_routed(sequence, model.route_all("text"), use_cache=False).last_hidden_state
        return model.text_logits(hidden)

    per_token = bytes_kept(model, forward) / longest
    tokens = 2 * (longest - report) + (1 + _BRANCHES) * report
    return training_size(name, model, int(per_token * tokens), loop, extra=4 * averaged)


class _FusedAttention(torch.autograd.Function):
    """Save for backward what fused attention kernels save: queries, keys, values, output. On meta tensors torch would
    use the unfused implementation, which saves the attention matrix. Never run backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def _fused_attention(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any
) -> tuple[Tensor, None]:
    """Map (B, heads, L, D) to (B, L, heads, D), the interface of transformers."""
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None


_FUSED = "medunifier_counted"
AttentionInterface.register(_FUSED, _fused_attention)
