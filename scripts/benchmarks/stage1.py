"""Training step of the tokenizer against the fork of taming-transformers, in float32 on a CPU.

Both sides train generator and discriminator on the same images, with the adversarial loss enabled and with the same
perceptual net, which replaces the VGG-16 that the fork would download. The peer is the step of its ``VQModel`` with
the fork's loss class: Lightning calls it once per optimizer, so generator and losses run twice. Ours is the step of
:class:`TokenizerTask` with the Haar front end of the ``cxr_*`` presets. Width and image size, equal on both sides,
are chosen for two cores.
"""

import contextlib
import io
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier.bench import BenchConfig, Row, paired
from medunifier.shared.training.config import LoopConfig, OptimConfig
from medunifier.stage1_tokenizer.config import (
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    ModelConfig,
    PerceptualConfig,
    Stage1Config,
)
from medunifier.stage1_tokenizer.losses.perceptual import Lpips
from medunifier.stage1_tokenizer.training.task import TokenizerTask

SIZE, WIDTH, BATCH, CODES = 128, 128, 8, 1024
PERCEPTUAL = PerceptualConfig("squeeze", "random")
OPTIM = OptimConfig(lr=1e-4, betas=(0.5, 0.9), warmup_steps=0, schedule="constant", max_grad_norm=0)
TARGET = 8.0


def rows(config: BenchConfig) -> list[Row]:
    """Return one row: images/s, including the steps of both optimizers."""
    torch.manual_seed(0)
    images = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1
    task, peer = _task(), _ForkStep()
    return [
        paired(
            f"training step, {BATCH} images of {SIZE} px, width {WIDTH}, f16, LPIPS on {PERCEPTUAL.net}, "
            "discriminator on, images/s",
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
    unused: Any = SimpleNamespace()  # run folder and validation set, which a step does not use
    return TokenizerTask(config, Accelerator(cpu=True), unused, unused)


class Fork(nn.Module):
    """The modules of taming's ``VQModel`` and its loss class (``VQModel`` itself needs a Lightning of 2021).

    Args:
        size: height and width of the grey images in pixels.
        width: ``ch``; 128 in the published model.
        codes: number of codebook entries.
        dimensions: dimension of an entry, and ``z_channels``.
        attention: ``attn_resolutions``.
        groups: groups of the GroupNorms, 32 in the published model. A narrow model needs fewer to have as many
            channels per group.
        loss: further arguments of ``VQLPIPSWithDiscriminator``.
    """

    def __init__(
        self,
        size: int,
        width: int,
        codes: int,
        dimensions: int = 256,
        attention: tuple[int, ...] = (16,),
        groups: int = 32,
        **loss: Any,
    ) -> None:
        super().__init__()
        from taming.modules.diffusionmodules import model
        from taming.modules.losses import vqperceptual
        from taming.modules.vqvae.quantize import VectorQuantizer2

        sizes: dict[str, Any] = {
            "resolution": size, "in_channels": 1, "out_ch": 1, "ch": width, "ch_mult": (1, 1, 2, 2, 4),
            "num_res_blocks": 2, "attn_resolutions": attention, "z_channels": dimensions,
        }  # fmt: skip
        with (
            contextlib.redirect_stdout(io.StringIO()),
            patch.object(vqperceptual, "LPIPS", _Perceptual),
            patch.object(model, "Normalize", lambda channels: nn.GroupNorm(groups, channels, eps=1e-6)),
        ):
            self.encoder, self.decoder = model.Encoder(**sizes, double_z=False), model.Decoder(**sizes)
            self.loss = vqperceptual.VQLPIPSWithDiscriminator(disc_in_channels=1, **loss)
        self.quantize = VectorQuantizer2(codes, dimensions, beta=0.25, sane_index_shape=True)
        self.quant_conv = nn.Conv2d(dimensions, dimensions, 1)
        self.post_quant_conv = nn.Conv2d(dimensions, dimensions, 1)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers of the generator and of the discriminator."""
        generator = [self.encoder, self.decoder, self.quantize, self.quant_conv, self.post_quant_conv]
        return [
            torch.optim.Adam(nn.ModuleList(modules).parameters(), lr=OPTIM.lr, betas=OPTIM.betas)
            for modules in (generator, [self.loss.discriminator])
        ]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, H, W) in [-1, 1] -> reconstruction, codebook loss, codes (B, h, w)."""
        z_q, codebook_loss, (_, _, codes) = self.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(z_q)), codebook_loss, codes

    def losses(self, images: Tensor, output: tuple[Tensor, Tensor, Tensor], side: int, step: int) -> Tensor:
        """Return the loss of the generator (``side`` 0) or of the discriminator (``side`` 1)."""
        reconstruction, codebook_loss, _ = output
        last_layer = self.decoder.conv_out.weight
        loss: Tensor = self.loss(codebook_loss, images, reconstruction, side, step, last_layer=last_layer)[0]
        return loss


class _ForkStep:
    """``VQModel.training_step`` for both optimizers, followed by their updates."""

    def __init__(self) -> None:
        self._fork = Fork(SIZE, WIDTH, CODES, disc_start=0)
        self._optimizers = self._fork.optimizers()

    def step(self, images: Tensor) -> None:
        for side, optimizer in enumerate(self._optimizers):
            loss = self._fork.losses(images, self._fork(images), side, 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class _Perceptual(Lpips):
    """Our perceptual net with the interface of the fork's: (B, 1, 1, 1) distances."""

    def __init__(self) -> None:
        super().__init__(PERCEPTUAL)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return super().forward(images, others)[:, None, None, None]
