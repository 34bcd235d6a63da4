"""Stage 2 as the loop sees it: one optimizer step over the four objectives, and validation with pictures."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from data.loader import sample_stream
from shared.distributed import all_reduce_sum, is_main, rank, world_size
from shared.loop import FLOP, TOKENS, check_finite, set_rate
from shared.plots import labelled_rows
from shared.run_folder import RunFolder
from stage1_tokenizer.frozen import FrozenTokenizer
from stage2_unified.config import Stage2Config
from stage2_unified.corpus import StudiesWithText
from stage2_unified.global_batch import GlobalBatch, gather_step
from stage2_unified.model import MedUnifierForConditionalGeneration
from stage2_unified.objectives.chance import chance_levels
from stage2_unified.processor import MedUnifierProcessor
from stage2_unified.sequences import StudyBatch, StudyCollator
from stage2_unified.vocabulary import PAD

OBJECTIVES = ("contrast", "matching", "report", "image")
VALIDATION_BATCHES = 16
SHOWN_STUDIES = 8
_AT_CHANCE = 0.98  # a loss above this share of its chance level has learned nothing


@dataclass
class UnifiedTask:
    """Holds what a step needs; ``model`` and ``optimizers`` are prepared for this process.

    A ``sharded`` model draws and writes on all processes at once, since each holds a part of it.
    """

    model: Any
    optimizers: list[Any]
    accelerator: Accelerator
    config: Stage2Config
    run: RunFolder
    validation: StudiesWithText | None
    processor: MedUnifierProcessor
    tokenizer: FrozenTokenizer
    sharded: bool = False

    def step(self, micro_batches: list[StudyBatch], step: int) -> dict[str, Tensor | float]:
        """One optimizer step; every mean is over the tokens of all micro-batches and processes."""
        config = self.config
        rate = config.optim.rate(step, config.loop.steps)
        for optimizer in self.optimizers:
            set_rate(optimizer, rate)
        self.model.train()
        device = self.accelerator.device
        batches = [replace(batch.to(device), draw_seed=step) for batch in micro_batches]
        everything = self._everything(batches)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            whole = replace(everything, part=number) if everything else None
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():  # a prepared model has its own; a sharded one has not
                    losses = self.model(batch=batch, step=whole)
                check_finite(losses, step + 1)
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), config.optim.clip or float("inf")
                    )
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        chance = {f"{name}.chance": level for name, level in self._chance(config.loop.global_batch()).items()}
        tokens = sums.pop(TOKENS) * len(batches)
        work = {TOKENS: tokens, FLOP: tokens * self._flop_a_token}
        return {**sums, "gradient_norm": norm, "lr": rate, **chance, **work}

    @cached_property
    def _flop_a_token(self) -> int:
        """Of a step, forward and backward: the products of the decoder's layers alone.

        Six a weight, four where it is frozen. Attention over the row and the heads come to a few per cent more, and
        what is computed again (recomputed layers, the first pass of several micro-batches) is no progress.
        """
        layers = self.accelerator.unwrap_model(self.model).model.layers
        return sum(p.numel() * (6 if p.requires_grad else 4) for p in layers.parameters() if p.dim() == 2)

    @torch.no_grad()
    def _everything(self, batches: list[StudyBatch]) -> GlobalBatch | None:
        """All studies of the step, from a pass for their embeddings; None where one pass does both."""
        if len(batches) == 1:
            return None
        with self.accelerator.autocast():
            embeddings = [self.model(batch=batch, embed_only=True) for batch in batches]
        return gather_step(batches, embeddings, self.config.negative_hardness, self.processor.vocabulary[PAD])

    def _chance(self, contrasted: int) -> dict[str, float]:
        vocabulary = self.processor.vocabulary
        return chance_levels(contrasted, vocabulary.offset, vocabulary.codes)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Losses over the validation studies, with all texts; fixed samples go to ``pictures/``."""
        if self.validation is None:
            return {}
        self.model.eval()
        figures: dict[str, Tensor] = {}
        batches = 0
        for batch in self._validation_batches():
            with self.accelerator.autocast():
                losses = self.model(batch=batch.to(self.accelerator.device))
            for name, value in losses.items():
                figures[name] = figures.get(name, 0.0) + value
            batches += 1
        figures.pop(TOKENS, None)
        names = sorted(figures)
        means = all_reduce_sum(torch.stack([figures[name].float() for name in names])) / (batches * world_size())
        result = dict(zip(names, means.tolist(), strict=True))
        self._warn_at_chance(result, step)
        if is_main() or self.sharded:
            with self.accelerator.autocast():
                self._samples(step)
        return result

    def _validation_batches(self) -> Iterator[StudyBatch]:
        """Batches of equal size on every process, since the contrast gathers from all."""
        assert self.validation is not None
        size = self._validation_size()
        count = min(VALIDATION_BATCHES, len(self.validation) // (size * world_size()))
        stream = sample_stream(
            self.validation,
            self._collate(),
            batch_size=size,
            seed=self.config.loop.seed,
            rank=rank(),
            world=world_size(),
        )
        return (next(stream) for _ in range(count))

    def _validation_size(self) -> int:
        assert self.validation is not None
        return min(self.config.loop.batch_size, len(self.validation) // world_size())

    def _warn_at_chance(self, losses: dict[str, float], step: int) -> None:
        if not is_main() or step < 2 * self.config.optim.warmup_steps:
            return
        weights, chance = self.config.weights, self._chance(self._validation_size() * world_size())
        for name in OBJECTIVES:
            if getattr(weights, name) > 0 and losses[name] > _AT_CHANCE * chance[name]:
                print(f"warning: at step {step} {name} is at chance ({losses[name]:.3f} nats): it learns nothing yet")

    def _samples(self, step: int) -> None:
        """Radiographs drawn from fixed reports, and reports written for fixed radiographs."""
        assert self.validation is not None
        count = min(SHOWN_STUDIES, len(self.validation))
        batch = self._collate()([(n, self.validation[n]) for n in range(count)])
        batch = batch.to(self.accelerator.device)
        model = self._plain()
        first = batch.spans  # of several images the first one is drawn
        drawn = model.generate(
            generation_mode="image",
            report=batch.report,
            report_length=batch.report_length,
            view=first.view[:, 0],
            seeds=torch.arange(count),
            prior_codes=batch.prior_codes,
            prior_view=batch.prior_view,
        )
        grid = (-1, *self.tokenizer.grid)
        rows = [("originals, as the tokenizer keeps them", first.codes[:, 0]), ("drawn from their reports", drawn)]
        self.run.picture(
            "drawn",
            step,
            labelled_rows(
                [(name, self.processor.codes_to_images(codes.view(grid).cpu()).numpy()) for name, codes in rows],
                scale=max(1, 128 // self.tokenizer.image_size),
            ),
        )
        written = self.processor.write_reports(
            model, batch.codes, batch.view, prior_codes=batch.prior_codes, prior_view=batch.prior_view
        )
        lines = [
            f"[{number}] truth:   {' | '.join(self.validation[number].info['report'].get(s, '') for s in report)}\n"
            f"[{number}] written: {' | '.join(report.values())}\n"
            for number, report in enumerate(written)
        ]
        self.run.text("reports", step, "\n".join(lines))

    def _collate(self) -> StudyCollator:
        return StudyCollator(self.processor.codec, max_views=self.config.data.max_views)

    def _plain(self) -> MedUnifierForConditionalGeneration:
        plain: MedUnifierForConditionalGeneration = self.accelerator.unwrap_model(self.model)
        return plain
