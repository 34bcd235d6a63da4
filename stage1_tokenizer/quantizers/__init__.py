"""Quantisers: a vector of the encoder becomes the number of a codebook entry. One file each, one interface."""

from stage1_tokenizer.config import ModelConfig
from stage1_tokenizer.quantizers.base import Quantized, Quantizer, nearest_entry
from stage1_tokenizer.quantizers.classic import ClassicQuantizer
from stage1_tokenizer.quantizers.gumbel import GumbelQuantizer, largest_logit
from stage1_tokenizer.quantizers.moving_average import MovingAverageQuantizer
from stage1_tokenizer.quantizers.unit_norm import UnitNormQuantizer

__all__ = [
    "ClassicQuantizer",
    "GumbelQuantizer",
    "MovingAverageQuantizer",
    "Quantized",
    "Quantizer",
    "UnitNormQuantizer",
    "build_quantizer",
    "largest_logit",
    "nearest_entry",
]

_KINDS: dict[str, type[Quantizer]] = {
    "classic": ClassicQuantizer,
    "unit_norm": UnitNormQuantizer,
    "moving_average": MovingAverageQuantizer,
    "gumbel": GumbelQuantizer,
}


def build_quantizer(config: ModelConfig) -> Quantizer:
    """The quantiser that ``config.quantizer.kind`` names."""
    return _KINDS[config.quantizer.kind](config.n_embed, config.embed_dim, config.quantizer)
