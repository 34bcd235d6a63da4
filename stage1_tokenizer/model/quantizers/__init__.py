"""Quantizers: map each encoder vector to the index of a codebook entry. One file each, one interface."""

from medunifier.stage1_tokenizer.config import ModelConfig
from medunifier.stage1_tokenizer.model.quantizers.base import Quantized, Quantizer, nearest_entry
from medunifier.stage1_tokenizer.model.quantizers.cosine_vq import CosineQuantizer
from medunifier.stage1_tokenizer.model.quantizers.ema_vq import EMAQuantizer
from medunifier.stage1_tokenizer.model.quantizers.gumbel_vq import GumbelQuantizer, largest_logit
from medunifier.stage1_tokenizer.model.quantizers.vq import VectorQuantizer

__all__ = [
    "VectorQuantizer",
    "GumbelQuantizer",
    "EMAQuantizer",
    "Quantized",
    "Quantizer",
    "CosineQuantizer",
    "build_quantizer",
    "largest_logit",
    "nearest_entry",
]

_KINDS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "cosine_vq": CosineQuantizer,
    "ema_vq": EMAQuantizer,
    "gumbel_vq": GumbelQuantizer,
}


def build_quantizer(config: ModelConfig) -> Quantizer:
    """Return the quantizer of ``config.quantizer.kind``."""
    return _KINDS[config.quantizer.kind](config.n_embed, config.embed_dim, config.quantizer)
