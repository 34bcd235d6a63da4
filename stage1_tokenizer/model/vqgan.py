"""The VQ-GAN: image -> encoder -> quantizer -> decoder -> image (Esser et al., "Taming transformers", 2021)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medunifier.stage1_tokenizer.config import ModelConfig, model_config
from medunifier.stage1_tokenizer.model.compiling import compile_method
from medunifier.stage1_tokenizer.model.haar import build_front_end
from medunifier.stage1_tokenizer.model.layers import CheckpointedBlocks, Decoder, Encoder
from medunifier.stage1_tokenizer.model.quantizers import build_quantizer


class VQGANOutput(NamedTuple):
    """Output of the forward pass."""

    reconstruction: Tensor
    """(B, out_ch, H, W), about [-1, 1], not clamped."""
    losses: dict[str, Tensor]
    """Weighted scalar losses of the quantizer, such as ``codebook`` and ``commitment``."""
    codes: Tensor
    """(B, h, w) int64."""
    z_q: Tensor
    """(B, D, h, w) float32 codebook entries of the codes, with a straight-through gradient to the encoder."""


class VQGAN(nn.Module):
    """A trainable tokenizer with taming's key names.

    Args:
        config: a :class:`ModelConfig`, or its values as a mapping.

    Raises:
        ValueError: for unknown keys or an impossible combination.
    """

    def __init__(self, config: ModelConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = config if isinstance(config, ModelConfig) else model_config(config)
        self.front_end = build_front_end(config)
        sizes: dict[str, Any] = {
            "resolution": config.resolution // self.front_end.stride,
            "ch": config.ch,
            "ch_mult": config.ch_mult,
            "num_res_blocks": config.num_res_blocks,
            "attn_resolutions": config.attn_resolutions,
            "z_channels": config.z_channels,
            "groups": config.norm_groups,
            "dropout": config.dropout,
        }
        self.encoder = Encoder(in_channels=config.in_channels * self.front_end.channel_multiplier, **sizes)
        self.decoder = Decoder(out_ch=config.out_ch * self.front_end.channel_multiplier, **sizes)
        self.quantize = build_quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @property
    def last_layer(self) -> Tensor:
        """The weight at whose gradients the adaptive weight is computed."""
        return self.decoder.conv_out.weight

    def gradient_checkpointing(self) -> None:
        """Enable gradient checkpointing: the backward pass recomputes the blocks, which saves memory."""
        for module in self.modules():
            if isinstance(module, CheckpointedBlocks):
                module.gradient_checkpointing = True

    def flop_an_image(self) -> int:
        """Return the FLOPs of encoding and decoding one image; a multiply-add counts as two."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            model = VQGAN(self.config)
            side = self.config.resolution // self.front_end.stride
            h = model.encoder(torch.empty(1, self.config.in_channels * self.front_end.channel_multiplier, side, side))
            model.decoder(model.post_quant_conv(model.quant_conv(h)))
        return int(counter.get_total_flops())

    def compile_graphs(self) -> None:
        """Compile training: encoder, quantizer and decoder up to its last convolution, one graph each.

        The last convolution is not compiled. The adaptive weight differentiates it alone and retains its graph for
        the update; a compiled graph would be differentiated as a whole, and cannot be retained (donated buffers).
        """
        compile_method(self, "encode")
        compile_method(self.quantize, "quantize")
        compile_method(self, "decoder_features")

    def encode(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] -> vectors (B, D, h, w), before quantization.

        A three-channel model accepts (B, 3, H, W), and repeats a grey image three times.
        """
        if images.shape[1] == 1:
            images = images.expand(-1, self.config.in_channels, -1, -1)
        return self.quant_conv(self.encoder(self.front_end(images)))

    def decode(self, z_q: Tensor) -> Tensor:
        """(B, D, h, w) codebook entries -> images (B, 1, H, W), about [-1, 1], not clamped."""
        return self.front_end.inverse(self.decoder.conv_out(self.decoder_features(z_q)))

    def decoder_features(self, z_q: Tensor) -> Tensor:
        """(B, D, h, w) codebook entries -> input of the decoder's last convolution."""
        return self.decoder.features(self.post_quant_conv(z_q))

    def encode_indices(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] -> codes (B, h, w), int64."""
        return self.quantize.lookup(self.encode(images))

    def decode_indices(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> images (B, 1, H, W), about [-1, 1], not clamped."""
        return self.decode(self.quantize.entries(codes))

    def forward(self, images: Tensor) -> VQGANOutput:
        """(B, 1, H, W) in [-1, 1] -> reconstruction, quantizer losses, codes, entries."""
        quantized = self.quantize(self.encode(images))
        return VQGANOutput(self.decode(quantized.z_q), quantized.losses, quantized.codes, quantized.z_q)
