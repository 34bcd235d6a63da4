"""What a preset needs: its parameters are counted and its activations measured on tensors without memory.

Both stages are built on torch's ``meta`` device and run forward once; what autograd would keep for the backward pass
is added up. Nothing is guessed but what lies around it: allocator, cuDNN's work space, the perceptual net.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import AttentionInterface

from medunifier.stage1_tokenizer.config import ModelConfig, model_config
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.sequences import longest_sequence
from medunifier.stage2_unified.training.config import BackboneConfig

TRAINING_BYTES = 16
"""A parameter in training: float32 weight and gradient, and two moments of AdamW."""
_BRANCHES = 3  # reports an image, its own and two negatives


@dataclass(frozen=True)
class Size:
    """A preset of ``configs/``.

    Attributes:
        name: ``stage1/cxr_f16``.
        parameters: trained ones.
        state: bytes of a training before its first image.
        sample: bytes of activations that a training keeps a study, at the preset's precision.
        use: bytes of the weights alone, in float32.
        batch: studies a step and process that the preset asks for.
    """

    name: str
    parameters: int
    state: int
    sample: int
    use: int
    batch: int

    def largest_batch(self, memory: int) -> int:
        """Studies a step that fit into ``memory`` bytes; 0 if not even the state does."""
        return max(0, (memory - self.state) // max(self.sample, 1))


def preset_sizes(configs: Path) -> list[Size]:
    """Every preset of stage 1 and stage 2. A stage-2 preset is taken with the tokenizer preset of its name,
    or else with ``cxr_f16``."""
    stage1 = {path.stem: _read(path) for path in sorted((configs / "stage1").glob("*.yaml"))}
    sizes = [_stage1(f"stage1/{name}", values) for name, values in stage1.items()]
    for path in sorted((configs / "stage2").glob("*.yaml")):
        tokenizer = stage1.get(path.stem) or stage1.get("cxr_f16")
        if tokenizer is not None:
            sizes.append(_stage2(f"stage2/{path.stem}", _read(path), model_config(tokenizer["model"])))
    return sizes


def _read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _stage1(name: str, values: dict[str, Any]) -> Size:
    config = model_config(values["model"])
    with torch.device("meta"):
        model = VQGAN(config)
        side, channels = config.resolution // model.front_end.stride, config.in_channels * model.front_end.channel_multiplier
        # Behind the front end, which keeps nothing of note and needs a device that computes.
        images = torch.empty(1, channels, side, side)
    kept = bytes_kept(model, lambda: model.decoder(model.post_quant_conv(model.quant_conv(model.encoder(images)))))
    # The averaged weights that are validated and exported are one more float32 a parameter.
    return _size(name, model, kept, values, extra=4)


def _stage2(name: str, values: dict[str, Any], tokenizer: ModelConfig) -> Size:
    data, text = values.get("data", {}), values.get("text", {})
    backbone = BackboneConfig(**values.get("model", {}))
    height, width = tokenizer.grid
    report = int(data.get("max_report_tokens", 192))
    longest = longest_sequence(height * width, report, int(data.get("max_views", 1)), bool(data.get("prior", False)))
    config = MedUnifierConfig(
        text_config=backbone.to_transformers(longest),
        text_size=int(text.get("vocabulary_size", 8192)),
        codebook_size=tokenizer.n_embed,
        code_dim=tokenizer.embed_dim,
        grid=tokenizer.grid,
        embedding_dim=backbone.embedding_dim,
    )
    with torch.device("meta"):
        model = MedUnifierForConditionalGeneration(config)
        row = torch.empty(1, longest, backbone.hidden_dim)

    model.model.config._attn_implementation = _FUSED

    def forward() -> Tensor:
        hidden: Tensor = model.model(inputs_embeds=row, use_cache=False).last_hidden_state
        return model.text_logits(hidden)

    a_token = bytes_kept(model, forward) / row.shape[1]
    tokens = 2 * (longest - report) + (1 + _BRANCHES) * report
    return _size(name, model, int(a_token * tokens), values)


def _size(name: str, model: nn.Module, kept: int, values: dict[str, Any], extra: int = 0) -> Size:
    loop = values.get("loop", {})
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    half = loop.get("mixed_precision") in ("bf16", "fp16")
    return Size(
        name, parameters, parameters * (TRAINING_BYTES + extra), kept // 2 if half else kept, weights,
        int(loop.get("batch_size", 1)),
    )  # fmt: skip


class _FusedAttention(torch.autograd.Function):
    """Attention as its fused kernels keep it: queries, keys, values, output. On meta tensors torch would take the
    plain one, which keeps a table of all pairs. Never run backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def _fused_attention(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any
) -> tuple[Tensor, None]:
    """(B, heads, L, D) in, (B, L, heads, D) out, as transformers has it."""
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None


_FUSED = "medunifier_counted"
AttentionInterface.register(_FUSED, _fused_attention)


def bytes_kept(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of activations that autograd keeps for the backward pass of ``forward``, each storage once."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no later storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)
