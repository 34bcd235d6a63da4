"""A training step of the tokenizer: ours against the fork's modules with the fork's own loss class, float32 on a CPU.

Both sides train generator and discriminator on the same images, with the adversarial loss counting and with the same
perceptual net, in the place of the VGG-16 that the fork would download. The peer's step is that of its ``VQModel``:
Lightning calls it once an optimizer, so generator and losses run twice. Ours is the step of :class:`TokenizerTask`
with the Haar front end of the ``cxr_*`` presets. Width and size, equal on both sides, are what two cores can do.
"""

import contextlib
import io
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.bench import BenchConfig, Row, paired
from shared.loop import LoopConfig, OptimConfig
from stage1_tokenizer.config import (
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    ModelConfig,
    PerceptualConfig,
    Stage1Config,
)
from stage1_tokenizer.perceptual import Lpips
from stage1_tokenizer.task import TokenizerTask

SIZE, WIDTH, BATCH, CODES = 128, 128, 2, 1024
PERCEPTUAL = PerceptualConfig("squeeze", "random")
OPTIM = OptimConfig(lr=1e-4, betas=(0.5, 0.9), warmup_steps=0, schedule="constant", clip=0)
TARGET = 8.0


def rows(config: BenchConfig) -> list[Row]:
    """One row: images a second, both optimizers' steps included."""
    torch.manual_seed(0)
    images = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1
    task, peer = _task(), _ForkStep()
    return [
        paired(
            f"training step, {SIZE} px, width {WIDTH}, f16, LPIPS on {PERCEPTUAL.net}, discriminator on, images/s",
            lambda: task.step([images], 10),
            lambda: peer.step(images),
            config,
            TARGET,
            units=float(BATCH),
        )
    ]


def _task() -> TokenizerTask:
    model = ModelConfig(
        resolution=SIZE,
        ch=WIDTH,
        ch_mult=(1, 2, 4),
        attn_resolutions=(),
        n_embed=CODES,
        embed_dim=8,
        front_end="haar",
        front_end_levels=2,
    )
    discriminator = DiscriminatorConfig(train_from=0, start=1, ramp=1)
    config = Stage1Config(
        DataConfig("-"),
        "-",
        model,
        LossConfig(perceptual=PERCEPTUAL, discriminator=discriminator),
        OPTIM,
        LoopConfig(),
    )
    nowhere: Any = SimpleNamespace()  # run folder and validation set, which a step does not touch
    return TokenizerTask(config, Accelerator(cpu=True), nowhere, nowhere)


class _ForkStep:
    """``VQModel.training_step`` for both of its optimizers, and their steps."""

    def __init__(self) -> None:
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.losses import vqperceptual
        from taming.modules.vqvae.quantize import VectorQuantizer2

        sizes: dict[str, Any] = {
            "resolution": SIZE, "in_channels": 1, "out_ch": 1, "ch": WIDTH, "ch_mult": (1, 1, 2, 2, 4),
            "num_res_blocks": 2, "attn_resolutions": (16,), "z_channels": 256,
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()), patch.object(vqperceptual, "LPIPS", _Perceptual):
            self.encoder, self.decoder = Encoder(**sizes, double_z=False), Decoder(**sizes)
            self.loss = vqperceptual.VQLPIPSWithDiscriminator(disc_start=0, disc_in_channels=1)
        self.quantize = VectorQuantizer2(CODES, 256, beta=0.25)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1)
        generator = nn.ModuleList([self.encoder, self.decoder, self.quantize, self.quant_conv, self.post_quant_conv])
        self.optimizers = [
            torch.optim.Adam(module.parameters(), lr=OPTIM.lr, betas=OPTIM.betas)
            for module in (generator, self.loss.discriminator)
        ]

    def step(self, images: Tensor) -> None:
        for number, optimizer in enumerate(self.optimizers):
            z_q, codebook_loss, _ = self.quantize(self.quant_conv(self.encoder(images)))
            reconstruction = self.decoder(self.post_quant_conv(z_q))
            loss, _ = self.loss(
                codebook_loss, images, reconstruction, number, 1, last_layer=self.decoder.conv_out.weight
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class _Perceptual(Lpips):
    """Our perceptual net under the interface of the fork's: (B, 1, 1, 1) distances."""

    def __init__(self) -> None:
        super().__init__(PERCEPTUAL)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return super().forward(images, others)[:, None, None, None]
