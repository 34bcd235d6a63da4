"""Choose how many studies run at once from the memory that is free."""

import torch

from medunifier.stage2_unified.generation.decoding import round_up
from medunifier.stage2_unified.model.configuration import MedUnifierConfig
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.sequences import longest_sequence

CPU_BATCH_SIZE = 32
"""On a CPU more sequences at once are not faster."""
_LARGEST = 256
_SHARE = 0.5  # of the free memory: steps of two kinds may be kept, and other programs use the GPU too
_ROWS = 2  # of a study, with guidance
_FLOAT32 = 4


def automatic_batch_size(model: MedUnifierForConditionalGeneration, device: torch.device) -> int:
    """Return a batch size, a power of two, for a model that is already on its device."""
    if device.type != "cuda":
        return CPU_BATCH_SIZE
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return largest_batch(model.config, torch.cuda.mem_get_info(device)[0] - weights // 2)  # a copy in bfloat16


def largest_batch(config: MedUnifierConfig, free: int) -> int:
    """Return the batch size, 1 to 256, whose buffers take at most half of ``free`` bytes."""
    size = 1
    while size < _LARGEST and 2 * size * bytes_per_study(config) <= _SHARE * free:
        size *= 2
    return size


def bytes_per_study(config: MedUnifierConfig) -> int:
    """Return the memory that generation takes per study: its keys and values, and the activations of a layer."""
    text = config.text_config
    columns = round_up(
        longest_sequence(config.image_tokens, config.max_report_tokens, config.max_views, config.prior)
    )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * head_dim * columns
    activations = columns * (8 * text.hidden_size + 3 * getattr(text, "intermediate_size", 4 * text.hidden_size))
    return int(_ROWS * _FLOAT32 * (cache + activations + 8 * len(config.vocabulary)))
