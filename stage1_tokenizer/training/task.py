"""The stage 1 task of the training loop: the step of generator and discriminator, and validation."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.shards.loader import batches_once
from medunifier.shared.command import interruption
from medunifier.shared.report_page.plots import labelled_rows
from medunifier.shared.training.config import OptimConfig, use_compile
from medunifier.shared.training.distributed import is_main, rank, world_size
from medunifier.shared.training.loop import FLOP
from medunifier.shared.training.optimizer_step import OptimizerStep
from medunifier.shared.training.run_folder import RunFolder
from medunifier.stage1_tokenizer.config import Stage1Config
from medunifier.stage1_tokenizer.losses.adversarial import (
    LeCam,
    adaptive_weight,
    adversarial_ramp,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from medunifier.stage1_tokenizer.losses.perceptual import build_perceptual
from medunifier.stage1_tokenizer.model.compiling import compile_method
from medunifier.stage1_tokenizer.model.discriminator import PatchDiscriminator
from medunifier.stage1_tokenizer.model.vqgan import VQGAN
from medunifier.stage1_tokenizer.pixel_range import stack_images, to_unit
from medunifier.stage1_tokenizer.training.ema import ExponentialMovingAverage
from medunifier.stage1_tokenizer.training.fidelity import Fidelity


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on convolution weights only, not on norms, biases or the codebook."""
    parameters = dict(module.named_parameters())
    decayed = [p for name, p in parameters.items() if p.ndim >= 2 and not name.startswith("quantize.")]
    kept = [p for name, p in parameters.items() if p.ndim < 2 or name.startswith("quantize.")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    # Fused: one pass over weights, gradients and moments in place of a dozen; with 40 M weights on one core a step
    # takes 0.05 s, not 0.32 s.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class TokenizerTask:
    """Train a VQ-GAN under an Accelerator. All state that a resumed run needs is registered with the Accelerator.

    Args:
        config: configuration of the run.
        accelerator: prepares networks and optimizers.
        run: run folder, where the validation images are saved.
        validation: validation set.
    """

    def __init__(
        self, config: Stage1Config, accelerator: Accelerator, run: RunFolder, validation: ShardDataset
    ) -> None:
        self.config, self._accelerator, self._run, self._validation = config, accelerator, run, validation
        compiled = use_compile(config.compile, accelerator.device)
        if accelerator.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # the shapes of a training are constant
        self._perceptual = build_perceptual(config.loss.perceptual)
        if self._perceptual is not None:
            self._perceptual.to(accelerator.device).to(memory_format=torch.channels_last)
            if compiled:
                compile_method(self._perceptual, "loss")
        generator = VQGAN(config.model).to(accelerator.device).to(memory_format=torch.channels_last)
        self._flop_an_image = generator.flop_an_image()
        self.average = ExponentialMovingAverage(generator, config.ema_decay)
        if config.gradient_checkpointing:
            generator.gradient_checkpointing()
        if compiled:  # after the EMA was copied, which is not trained
            generator.compile_graphs()
        self._generator: Any = accelerator.prepare(generator)
        self._update_generator = self._optimizer_step(self._generator, build_optimizer(generator, config.optim))
        self._discriminator: Any = None
        if config.loss.gan_weight:
            adversary = config.loss.discriminator
            discriminator = PatchDiscriminator(
                config.model.out_ch, adversary.width, adversary.layers, adversary.norm
            ).to(accelerator.device)
            discriminator = discriminator.to(memory_format=torch.channels_last)
            if compiled:
                compile_method(discriminator, "forward")
            self._discriminator = accelerator.prepare(discriminator)
            self._update_discriminator = self._optimizer_step(
                self._discriminator, build_optimizer(discriminator, config.optim)
            )
        accelerator.register_for_checkpointing(self.average)
        self._best_usage = 0.0  # highest codebook usage in the validations since this process started
        self._lecam: LeCam | None = None
        if config.loss.gan_weight and config.loss.discriminator.lecam_weight:
            self._lecam = LeCam().to(accelerator.device)
            accelerator.register_for_checkpointing(self._lecam)

    def _optimizer_step(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerStep:
        prepared = self._accelerator.prepare(optimizer)
        return OptimizerStep(self._accelerator, network, [prepared], self.config.optim, self.config.loop.steps)

    def step(self, micro_batches: list[Tensor], step: int) -> Mapping[str, Tensor | float]:
        """Run one step of the generator and, from ``train_from`` on, one of the discriminator."""
        if not self._generator.training:
            self._generator.train()
        figures: dict[str, Tensor] = {}
        for images in micro_batches:
            images = images.to(self._accelerator.device, memory_format=torch.channels_last, non_blocking=True)
            images = images.expand(-1, self.config.model.out_ch, -1, -1)
            with self._accumulate():
                found = self._micro_step(images, step)
            for name, value in found.items():
                figures[name] = figures.get(name, torch.zeros((), device=value.device)) + value / len(micro_batches)
        generator = self._accelerator.unwrap_model(self._generator)
        generator.quantize.end_step()
        if self._lecam is not None:
            self._lecam.end_step()
        self.average.update(generator)
        # Forward and backward pass of the tokenizer only; perceptual net and discriminator are overhead and not
        # counted.
        flop = 3 * self._flop_an_image * sum(map(len, micro_batches))
        return {**figures, **self._update_generator.figures(step), FLOP: float(flop)}

    def _accumulate(self) -> Any:
        # Separate arguments, not a list: Accelerate ignores a list, and gradients would be reduced in every
        # micro-batch.
        if self._discriminator is None:
            return self._accelerator.accumulate(self._generator)
        return self._accelerator.accumulate(self._generator, self._discriminator)

    def _micro_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        config = self.config.loss
        output = self._generator(images)
        reconstruction = output.reconstruction
        # The losses are computed on a leaf, so that each is differentiated once: its gradient is used for both the
        # adaptive weight and the update.
        leaf = reconstruction.detach().requires_grad_()
        figures = {"l1": (leaf - images).abs().mean()}
        loss = config.l1_weight * figures["l1"]
        if config.l2_weight:
            figures["l2"] = (leaf - images).square().mean()
            loss = loss + config.l2_weight * figures["l2"]
        if self._perceptual is not None:
            with self._accelerator.autocast():
                figures["perceptual"] = self._perceptual.loss(images, leaf)
            loss = loss + config.perceptual_weight * figures["perceptual"]
        (gradient,) = torch.autograd.grad(loss, leaf)
        share = adversarial_ramp(step, config.discriminator) if self._discriminator is not None else 0.0
        if share:
            figures["adversarial"], adversarial_gradient = self._adversarial(leaf)
            weight = adaptive_weight(
                reconstruction,
                gradient,
                adversarial_gradient,
                self._accelerator.unwrap_model(self._generator).last_layer,
            )
            figures["adaptive_weight"] = weight
            gradient = gradient + share * config.gan_weight * weight * adversarial_gradient
        figures |= output.losses
        quantizer_loss = torch.stack(list(output.losses.values())).sum()
        # d/dw of <gradient, reconstruction> equals the gradient of the losses.
        self._update_generator((gradient * reconstruction).sum() + quantizer_loss, step)
        if self._discriminator is not None and step >= config.discriminator.train_from:
            figures |= self._discriminator_step(images, leaf.detach(), step)
        return {name: value.detach() for name, value in figures.items()}

    def _adversarial(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        # Without DDP's wrapper: this pass computes no gradients of the discriminator, and DDP would wait for them. A
        # compiled graph would compute them even so, if its weights required them.
        discriminator = self._accelerator.unwrap_model(self._discriminator).requires_grad_(False)
        with self._accelerator.autocast():
            loss = hinge_generator_loss(discriminator(leaf).float())
        discriminator.requires_grad_(True)
        return loss, torch.autograd.grad(loss, leaf)[0]

    def _discriminator_step(self, images: Tensor, reconstruction: Tensor, step: int) -> dict[str, Tensor]:
        # One pass over both: two passes through a BatchNorm under DDP fail, and shared batch statistics do not reveal
        # which images are real.
        logits = self._discriminator(torch.cat([images, reconstruction])).float()
        real, generated = logits.chunk(2)
        figures = {
            "discriminator": hinge_discriminator_loss(real, generated),
            "discriminator_accuracy": ((real > 0).float().mean() + (generated < 0).float().mean()) / 2,
        }
        loss = figures["discriminator"]
        if self._lecam is not None:
            figures["lecam"] = self._lecam(real, generated)
            loss = loss + self.config.loss.discriminator.lecam_weight * figures["lecam"]
        self._update_discriminator(loss, step)
        return figures

    @torch.no_grad()
    def validate(self, step: int) -> Mapping[str, float]:
        """Return validation metrics of the EMA weights over all processes, and save example reconstructions."""
        device, model = self._accelerator.device, self.average.module
        size, loop = self.config.model.resolution, self.config.loop
        fidelity = Fidelity(self.config.model.n_embed, size, self._perceptual, device)
        pictures: list[tuple[np.ndarray, np.ndarray]] = []
        batches = batches_once(
            self._validation,
            lambda samples: stack_images(samples, size),
            batch_size=loop.batch_size,
            rank=rank(),
            world=world_size(),
        )
        for images in interruption.between(batches):
            images = images.to(device, memory_format=torch.channels_last)
            with self._accelerator.autocast() if loop.mixed_precision != "no" else nullcontext():
                output = model(images)
            reconstruction = output.reconstruction.mean(dim=1, keepdim=True)  # three channels to grey
            fidelity.add(images, reconstruction, output.codes)
            if sum(len(a) for a, _ in pictures) < self.config.data.pictures:
                both = (to_unit(x)[:, 0].cpu().numpy() for x in (images, reconstruction))
                pictures.append(tuple(both))  # type: ignore[arg-type]
        originals, reconstructions = (
            np.concatenate(side)[: self.config.data.pictures] for side in zip(*pictures, strict=True)
        )
        picture = labelled_rows([("originals", originals), ("reconstructions", reconstructions)], scale=2)
        self._run.picture("reconstructions", step, picture)
        figures = fidelity.figures()
        self._warn_of_collapse(step, figures["codebook_usage"])
        return figures

    def _warn_of_collapse(self, step: int, usage: float) -> None:
        if usage < self._best_usage / 2 and is_main():
            print(
                f"warning: step {step}: {usage:.0%} of the codebook is in use, down from {self._best_usage:.0%}: "
                "the codebook collapses. See docs/tokenizer.md for remedies",
                flush=True,
            )
        self._best_usage = max(self._best_usage, usage)
