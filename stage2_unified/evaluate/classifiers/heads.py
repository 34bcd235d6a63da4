"""Heads on an image backbone, trained on labels or on masks: the backbone with them, or frozen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medunifier.shared.progress import Progress

EVALUATION_BATCH = 64


class Backbone(Protocol):
    """`medunifier.stage2_unified.model.image_backbone.ImageBackbone`, or another module with these."""

    width: int

    def inputs(self, codes: np.ndarray, views: Sequence[str]) -> tuple[Tensor, ...]: ...
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class FineTuning:
    """Training of the whole network, and of heads on masks."""

    steps: int = 150
    """Optimizer steps at each share of the labels; 0 = the linear probe alone."""
    batch_size: int = 32
    """Studies a step, drawn with replacement where there are fewer."""
    rate: float = 1e-3
    """Highest learning rate; it rises over the first tenth of the steps and falls to 0."""
    weight_decay: float = 0.05
    """Of AdamW."""
    scratch: bool = True
    """Train the same architecture from fresh weights beside it, by the same recipe."""
    shares: tuple[int, ...] = (1, 10, 100)
    """Per cent of the training studies whose labels are given."""
    uncertain: Literal["ignore", "chexpert"] = "ignore"
    """Uncertain labels of training studies: left out, or as CheXpert's papers have it (atelectasis, edema and
    effusion present, cardiomegaly and consolidation absent)."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.rate <= 0:
            raise ValueError("steps must be at least 0, batch_size at least 1 and rate above 0")
        if not self.shares or not all(0 < share <= 100 for share in self.shares):
            raise ValueError(f"shares must be per cents in 1 ... 100, got {list(self.shares)}")


class FindingHead(nn.Module):
    """A logit a finding, linear in the state of the whole image."""

    def __init__(self, width: int, findings: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, findings)

    def forward(self, whole: Tensor, cells: Tensor) -> Tensor:
        """(B, H), (B, N, H) -> (B, F)."""
        return self.linear(whole)

    @staticmethod
    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        """Mean cross-entropy over the labels that are known; ``truth`` (B, F) is NaN where they are not."""
        known = ~truth.isnan()
        losses = binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)


class MaskHead(nn.Module):
    """A logit a pixel and finding: each code's state, beside the whole's, is spread over the code's pixels, linearly.

    Args:
        width: of the states.
        findings: how many.
        grid: (h, w) codes of an image.
        size: side of the image in pixels.
    """

    def __init__(self, width: int, findings: int, grid: tuple[int, int], size: int) -> None:
        super().__init__()
        self.grid, self.findings = grid, findings
        self.patch = size // grid[0], size // grid[1]
        self.linear = nn.Linear(2 * width, findings * self.patch[0] * self.patch[1])

    def forward(self, whole: Tensor, cells: Tensor) -> Tensor:
        """(B, H), (B, N, H) -> (B, F, S, S)."""
        both = torch.cat([cells, whole[:, None].expand_as(cells)], dim=-1)
        (h, w), (p, q) = self.grid, self.patch
        pixels = self.linear(both).view(len(cells), h, w, self.findings, p, q)
        return pixels.permute(0, 3, 1, 4, 2, 5).reshape(len(cells), self.findings, h * p, w * q)

    @staticmethod
    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy plus 1 - soft Dice, each a mean over the masks that are known.

        Args:
            logits: (B, F, S, S).
            truth: (B, F, S, S) 1 or 0, or -1 throughout where it is not known.

        Cross-entropy alone marks nothing while a finding fills one pixel in fifty.
        """
        known = truth[..., 0, 0] >= 0  # (B, F): a mask is known as a whole
        if not known.any():
            return logits.sum() * 0.0
        logits, truth = logits[known], truth[known].float()  # (M, S, S)
        marked = logits.sigmoid()
        overlap = 2 * (marked * truth).sum(dim=(1, 2)) + 1
        dice = overlap / (marked.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 1)
        return binary_cross_entropy_with_logits(logits, truth) + (1 - dice).mean()


def train_head(
    backbone: Any,
    head: Any,
    inputs: tuple[Tensor, ...],
    truth: Tensor,
    options: FineTuning,
    seed: int,
    frozen: bool,
    title: str,
) -> Callable[..., np.ndarray]:
    """Train a head, with the backbone unless ``frozen``, by AdamW on batches drawn with the seed.

    Args:
        backbone: of :class:`Backbone`; trained in place.
        head: :class:`FindingHead` or :class:`MaskHead`.
        inputs: of the N training studies.
        truth: (N, …) what the head's loss takes.
        options: the recipe.
        seed: of the order of studies.
        frozen: train the head alone.
        title: for the progress bar.

    Returns:
        Inputs of M studies -> (M, …) logits, or whether they are above 0 if ``decided``.
    """
    device = next(head.parameters()).device
    parameters = list(head.parameters()) + ([] if frozen else [p for p in backbone.parameters() if p.requires_grad])
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, options.steps))
    order = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    backbone.train(not frozen)
    with Progress(options.steps, title, "step") as progress:
        for _ in range(options.steps):
            while len(rows) < options.batch_size:  # every study once before any comes again
                rows = torch.cat([rows, torch.randperm(len(truth), generator=order)])
            batch, rows = rows[: options.batch_size], rows[options.batch_size :]
            with torch.set_grad_enabled(not frozen):
                whole, cells = backbone(*(part[batch] for part in inputs))
            loss = head.loss(head(whole.float(), cells.float()), truth[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            progress.advance(1, loss=loss.item())
    backbone.eval()

    def apply(given: tuple[Tensor, ...], decided: bool = False) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for some in zip(*(part.split(EVALUATION_BATCH) for part in given), strict=True):
                logits = head(*(state.float() for state in backbone(*some)))
                parts.append((logits > 0 if decided else logits).cpu())
        return torch.cat(parts).numpy()

    return apply


def _share_of_rate(step: int, steps: int) -> float:
    """Linear rise over the first tenth, then half a cosine down to 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fresh(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose weights are a function of the seed, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
