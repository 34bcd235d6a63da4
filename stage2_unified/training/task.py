"""The stage-2 task of the training loop: optimizer steps over the four objectives, and validation with samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from medunifier.data.shards.loader import sample_stream
from medunifier.shared.command import interruption
from medunifier.shared.report_page.plots import labelled_rows
from medunifier.shared.training.distributed import all_reduce_sum, is_main, rank, world_size
from medunifier.shared.training.ema import SwappedAverage
from medunifier.shared.training.loop import FLOP, TOKENS
from medunifier.shared.training.optimizer_step import LR_SCALE, OptimizerStep
from medunifier.shared.training.run_folder import RunFolder
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage2_unified.generation.images import generate_images
from medunifier.stage2_unified.generation.reports import generate_reports
from medunifier.stage2_unified.model.experts import copy_expert, kind_of
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.model.vocabulary import PAD
from medunifier.stage2_unified.objectives.balance import balancing_factors, updated_norms
from medunifier.stage2_unified.objectives.chance import chance_levels
from medunifier.stage2_unified.training.build import GENERATOR
from medunifier.stage2_unified.training.collator import StudyBatch, StudyCollator
from medunifier.stage2_unified.training.config import OBJECTIVES, Stage2Config
from medunifier.stage2_unified.training.dataset import StudiesWithText
from medunifier.stage2_unified.training.global_batch import GlobalBatch, gather_step

VALIDATION_BATCHES = 16
SAMPLED_STUDIES = 8
_BALANCE = "balance.safetensors"  # in a checkpoint
_AT_CHANCE = 0.98  # a loss above this fraction of its chance level has learned nothing


@dataclass
class UnifiedTask:
    """Train :class:`FourObjectives` (``objectives`` and its ``optimizers``, prepared by Accelerate).

    A ``sharded`` model generates its validation samples on all processes, since each holds a part of the weights.
    Validation reports are padded to the ``buckets`` of the training ones, so that compiled layers see no more shapes.
    """

    objectives: Any
    optimizers: list[Any]
    accelerator: Accelerator
    config: Stage2Config
    run: RunFolder
    validation: StudiesWithText | None
    processor: MedUnifierProcessor
    tokenizer: FrozenTokenizer
    sharded: bool = False
    buckets: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.objectives.train()  # a loaded backbone is not in training mode
        self._norms = torch.zeros(len(OBJECTIVES), device=self.accelerator.device)  # of the losses' gradients
        self._weights = self._norms.new_tensor([getattr(self.config.weights, name) for name in OBJECTIVES])
        if self._balances:
            self.accelerator.register_save_state_pre_hook(self._save_norms)
            self.accelerator.register_load_state_pre_hook(self._load_norms)
        self._update = OptimizerStep(
            self.accelerator, self.objectives, self.optimizers, self.config.optim, self.config.loop.steps
        )
        self.average: SwappedAverage | None = None
        if self.config.ema_decay:
            trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
            self.average = SwappedAverage(trained, self.config.ema_decay)
            self.accelerator.register_for_checkpointing(self.average)

    def step(self, micro_batches: list[StudyBatch], step: int) -> dict[str, Tensor | float]:
        """Run one optimizer step; every mean is over all micro-batches and processes."""
        if not self.objectives.training:  # it visits each module: milliseconds of the host
            self.objectives.train()
        device = self.accelerator.device
        batches = [replace(batch.to(device), negative_seed=step) for batch in micro_batches]
        global_batch = self._global_batch(batches)
        counted = self._begin(step)
        factors = None
        if self._balances:
            part = [weight * (name in counted) for name, weight in zip(OBJECTIVES, self._weights, strict=True)]
            factors = balancing_factors(self._norms, torch.stack(part))
        measure = self._balances and step % self.config.optim.balance_every == 0
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            whole = replace(global_batch, part=number) if global_batch else None
            with self.accelerator.accumulate(self.objectives):
                with self.accelerator.autocast():  # part of a prepared module's forward, but not of a sharded one's
                    losses = self.objectives(
                        batch=batch, global_batch=whole, counted=counted, factors=factors, measure=measure
                    )
                self._update(losses["loss"], step)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        self._model.clamp_logit_scale()
        if self.average is not None:
            self.average.update()
        chance = {f"{name}.chance": level for name, level in self._chance(self.config.loop.global_batch()).items()}
        tokens = sums.pop(TOKENS) * len(batches)
        if measure:
            self._norms = updated_norms(self._norms, all_reduce_sum(sums.pop("gradients")) / world_size())
        if factors is not None:
            chance |= {f"{n}.weight": w for n, w in zip(OBJECTIVES, factors * self._weights, strict=True)}
        return {**sums, **self._update.figures(step), **chance, TOKENS: tokens, FLOP: tokens * self._flop_per_token}

    @property
    def _balances(self) -> bool:
        return self.config.optim.balance != "none"

    def _begin(self, step: int) -> tuple[str, ...]:
        """Set what the schedule changes at ``step``, and return the objectives that count."""
        schedule = self.config.schedule
        if self._model.has_experts:
            if step == schedule.generate_from > 0:
                copy_expert(self._model.model, "read", "generated")
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group[LR_SCALE] = 1.0 if group.get(GENERATOR) else schedule.rate_of_reader(step)
        return schedule.objectives(step)

    def _save_norms(self, _: list[Any], __: list[Any], folder: str) -> None:
        if is_main():
            save_file({"norms": self._norms}, Path(folder) / _BALANCE)

    def _load_norms(self, _: list[Any], folder: str) -> None:
        self._norms.copy_(load_file(Path(folder) / _BALANCE)["norms"])

    @cached_property
    def _flop_per_token(self) -> int:
        """FLOP of the decoder layers' matrix products, forward and backward, with one expert a token.

        Six a weight, four where it is frozen. Attention scores and the heads add a few per cent; recomputation
        (gradient checkpointing, the first pass of several micro-batches) does not count as progress.
        """
        layers = self._model.model.layers.named_parameters(prefix="layers")
        passed = [weights for name, weights in layers if weights.dim() == 2 and kind_of(name) == "text"]
        return sum(weights.numel() * (6 if weights.requires_grad else 4) for weights in passed)

    @torch.no_grad()
    def _global_batch(self, batches: list[StudyBatch]) -> GlobalBatch | None:
        """Return all studies of the step, from a pass for their embeddings; None if one pass does both."""
        if len(batches) == 1:
            return None
        with self.accelerator.autocast():
            embeddings = [self.objectives(batch=batch, embed_only=True) for batch in batches]
        pad, longest = self.processor.vocabulary[PAD], self._model.config.max_report_tokens
        return gather_step(batches, embeddings, self.config.negative_hardness, pad, longest)

    def _chance(self, contrasted: int) -> dict[str, float]:
        vocabulary = self.processor.vocabulary
        return chance_levels(contrasted, vocabulary.offset, vocabulary.codebook_size)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the model have the EMA of its weights within the context, if there is one. Call it on all processes."""
        if self.average is None:
            yield
            return
        self._reshard()
        with self.average.swapped():
            yield
            self._reshard()

    def _reshard(self) -> None:
        # After a pass without a backward one FSDP2 keeps what it gathered: values from before the swap.
        if self.sharded:
            self.objectives.reshard()

    def validate(self, step: int) -> dict[str, float]:
        """Return losses over the validation studies, with all texts; samples of fixed studies go to ``pictures/``.

        Both are of the EMA of the weights, if there is one.
        """
        if self.validation is None:
            return {}
        with self.averaged_weights():
            return self._validate(step)

    @torch.no_grad()
    def _validate(self, step: int) -> dict[str, float]:
        self.objectives.eval()
        figures: dict[str, Tensor] = {}
        batches = 0
        for batch in interruption.between(self._validation_batches()):
            with self.accelerator.autocast():
                losses = self.objectives(batch=batch.to(self.accelerator.device))
            for name, value in losses.items():
                figures[name] = figures.get(name, 0.0) + value
            batches += 1
        figures.pop(TOKENS, None)
        names = sorted(figures)
        means = all_reduce_sum(torch.stack([figures[name].float() for name in names])) / (batches * world_size())
        result = dict(zip(names, means.tolist(), strict=True))
        self._warn_at_chance(result, step)
        if is_main() or self.sharded:
            # Not compiled: each token would be a graph of its own.
            with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                self.accelerator.unwrap_model(self.objectives).call_with_model(
                    lambda model: self._samples(model, step)
                )
        return result

    def _validation_batches(self) -> Iterator[StudyBatch]:
        """Yield batches of equal size on every process, since the contrast gathers from all."""
        assert self.validation is not None  # noqa: S101 - narrows a type
        size = self._validation_size()
        count = min(VALIDATION_BATCHES, len(self.validation) // (size * world_size()))
        stream = sample_stream(
            self.validation,
            self._collator(),
            batch_size=size,
            seed=self.config.loop.seed,
            rank=rank(),
            world=world_size(),
        )
        return (next(stream) for _ in range(count))

    def _validation_size(self) -> int:
        assert self.validation is not None  # noqa: S101 - narrows a type
        # At least two studies over all processes: the contrast of one is undefined.
        size = max(self.config.loop.batch_size, -(-2 // world_size()))
        return min(size, len(self.validation) // world_size())

    def _warn_at_chance(self, losses: dict[str, float], step: int) -> None:
        if not is_main() or step < 2 * self.config.optim.warmup_steps:
            return
        weights, chance = self.config.weights, self._chance(self._validation_size() * world_size())
        for name in self.config.schedule.objectives(step):
            if getattr(weights, name) > 0 and losses[name] > _AT_CHANCE * chance.get(name, float("inf")):
                print(f"warning: at step {step} {name} is at chance ({losses[name]:.3f} nats): it learns nothing yet")

    def _samples(self, model: MedUnifierForConditionalGeneration, step: int) -> None:
        """Write images generated from fixed reports, and reports generated from fixed images."""
        assert self.validation is not None  # noqa: S101 - narrows a type
        count = min(SAMPLED_STUDIES, len(self.validation))
        batch = self._collator()([(n, self.validation[n]) for n in range(count)])
        batch = batch.to(self.accelerator.device)
        images = batch.images
        generated = generate_images(  # the first of several images
            model,
            batch.report,
            batch.report_length,
            images.view[:, 0],
            seeds=torch.arange(count),
            prior_codes=images.prior_codes,
            prior_view=images.prior_view,
        )
        grid = (-1, *self.tokenizer.grid)
        rows = [
            ("originals, encoded and decoded by the tokenizer", images.codes[:, 0]),
            ("generated from their reports", generated),
        ]
        self.run.picture(
            "generated",
            step,
            labelled_rows(
                [(name, self.processor.codes_to_images(codes.view(grid)).cpu().numpy()) for name, codes in rows],
                scale=max(1, 128 // self.tokenizer.image_size),
            ),
        )
        lines = [
            f"[{number}] truth:   {' | '.join(self.validation[number].info['report'].get(s, '') for s in report)}\n"
            f"[{number}] written: {' | '.join(report.values())}\n"
            for number, report in enumerate(generate_reports(model, self.processor.codec, images))
        ]
        self.run.text("reports", step, "\n".join(lines))

    def _collator(self) -> StudyCollator:
        data = self.config.data
        return StudyCollator(
            self.processor.codec,
            max_views=data.max_views,
            buckets=self.buckets,
            prior=data.prior,
            statements=data.statements,
            statement_tokens=data.statement_tokens,
        )

    @property
    def _model(self) -> MedUnifierForConditionalGeneration:
        model: MedUnifierForConditionalGeneration = self.accelerator.unwrap_model(self.objectives).model
        return model
