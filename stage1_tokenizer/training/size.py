"""Memory that training a tokenizer takes, for ``medunifier doctor`` and the warning at the start."""

import torch

from medunifier.shared.training.config import LoopConfig
from medunifier.shared.training.memory import Size, bytes_kept, training_size
from medunifier.stage1_tokenizer.config import ModelConfig
from medunifier.stage1_tokenizer.model.vqgan import VQGAN


def tokenizer_size(name: str, config: ModelConfig, loop: LoopConfig) -> Size:
    """Return the memory that training this tokenizer takes."""
    with torch.device("meta"):
        model = VQGAN(config)
        front_end = model.front_end
        side, channels = config.resolution // front_end.stride, config.in_channels * front_end.channel_multiplier
        # Input of the encoder: the front end saves almost nothing for backward and does not run on the meta device.
        images = torch.empty(1, channels, side, side)
    kept = bytes_kept(model, lambda: model.decoder(model.post_quant_conv(model.quant_conv(model.encoder(images)))))
    # The EMA weights are one more float32 per parameter.
    return training_size(name, model, kept, loop, extra=4)
