"""Memory requirements of presets: parameters are counted, activations are measured on the ``meta`` device.

Both stages are built on torch's ``meta`` device and run forward once, adding up what autograd would save for the
backward pass. Only the overhead is not measured: allocator, cuDNN workspace, perceptual network.
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
"""Bytes per parameter in training: float32 weight and gradient, and two AdamW moments."""
_BRANCHES = 3  # reports per image: the true one and two negatives


@dataclass(frozen=True)
class Size:
    """A preset of ``configs/``.

    Attributes:
        name: ``stage1/cxr_f16``.
        parameters: number of trainable parameters.
        state: bytes of weights, gradients and optimizer state in training.
        sample: bytes of activations per study in training, at the preset's precision.
        use: bytes of the weights alone, in float32.
        batch: the preset's batch size per process.
    """

    name: str
    parameters: int
    state: int
    sample: int
    use: int
    batch: int

    def largest_batch(self, memory: int) -> int:
        """Return the largest batch size that fits into ``memory`` bytes; 0 if not even the state fits."""
        return max(0, (memory - self.state) // max(self.sample, 1))


def preset_sizes(configs: Path) -> list[Size]:
    """Return the sizes of all presets. A stage-2 preset uses the tokenizer preset of its name, else ``cxr_f16``."""
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
        front_end = model.front_end
        side, channels = config.resolution // front_end.stride, config.in_channels * front_end.channel_multiplier
        # Input of the encoder: the front end saves almost nothing for backward and does not run on the meta device.
        images = torch.empty(1, channels, side, side)
    kept = bytes_kept(model, lambda: model.decoder(model.post_quant_conv(model.quant_conv(model.encoder(images)))))
    # The EMA weights are one more float32 per parameter.
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
        sequence = torch.empty(1, longest, backbone.hidden_dim)

    model.model.config._attn_implementation = _FUSED

    def forward() -> Tensor:
        hidden: Tensor = model.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        return model.text_logits(hidden)

    per_token = bytes_kept(model, forward) / sequence.shape[1]
    tokens = 2 * (longest - report) + (1 + _BRANCHES) * report
    return _size(name, model, int(per_token * tokens), values)


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


def bytes_kept(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Return the bytes of activations that autograd saves for the backward pass of ``forward``, each storage once."""
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # referenced, so that no later storage reuses its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
