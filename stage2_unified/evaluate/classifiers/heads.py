"""Train classification and segmentation heads on an image backbone, frozen or fine-tuned."""

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
    """Interface of `medunifier.stage2_unified.inference.image_backbone.ImageBackbone`."""

    width: int

    def inputs(self, codes: np.ndarray, views: Sequence[str]) -> tuple[Tensor, ...]: ...
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class FineTuning:
    """Recipe for fine-tuning all weights and for segmentation heads."""

    steps: int = 150
    """Optimizer steps at each percentage of the labels; 0 = linear probe only."""
    batch_size: int = 32
    """Studies per step, repeated where there are fewer."""
    rate: float = 1e-3
    """Peak learning rate: linear warm-up over the first tenth of the steps, then cosine decay to 0."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    scratch: bool = True
    """Also train the same architecture from random initialisation by the same recipe."""
    shares: tuple[int, ...] = (1, 10, 100)
    """Percentages of the training studies whose labels are used."""
    uncertain: Literal["ignore", "chexpert"] = "ignore"
    """Uncertain labels of training studies: ignore them, or map them as the CheXpert papers do (atelectasis, edema
    and effusion to present, cardiomegaly and consolidation to absent)."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.rate <= 0:
            raise ValueError("steps must be at least 0, batch_size at least 1 and rate above 0")
        if not self.shares or not all(0 < percent <= 100 for percent in self.shares):
            raise ValueError(f"shares must be percentages from 1 to 100, got {list(self.shares)}")


class FindingHead(nn.Module):
    """Linear classifier: one logit per finding from the pooled image state."""

    def __init__(self, width: int, findings: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, findings)

    def forward(self, pooled: Tensor, patches: Tensor) -> Tensor:
        """Map the states, pooled (B, H) and by code (B, N, H), to (B, F) logits; ``patches`` are unused."""
        return self.linear(pooled)

    @staticmethod
    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        """Return the mean cross-entropy over the known labels; ``truth`` (B, F) is NaN where a label is unknown."""
        known = ~truth.isnan()
        losses = binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)


class MaskHead(nn.Module):
    """Linear segmentation head: one logit per pixel and finding.

    The state of each code, concatenated with the pooled state, is projected to the pixels that the code covers.

    Args:
        width: dimension of the states.
        findings: number of findings.
        grid: (h, w) codes of an image.
        size: side of the image in pixels.
    """

    def __init__(self, width: int, findings: int, grid: tuple[int, int], size: int) -> None:
        super().__init__()
        self.grid, self.findings = grid, findings
        self.patch = size // grid[0], size // grid[1]
        self.linear = nn.Linear(2 * width, findings * self.patch[0] * self.patch[1])

    def forward(self, pooled: Tensor, patches: Tensor) -> Tensor:
        """Map the states, pooled (B, H) and by code (B, N, H), to (B, F, S, S) logits."""
        states = torch.cat([patches, pooled[:, None].expand_as(patches)], dim=-1)  # (B, N, 2H)
        (h, w), (p, q) = self.grid, self.patch
        pixels = self.linear(states).view(len(patches), h, w, self.findings, p, q)
        return pixels.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), self.findings, h * p, w * q)

    @staticmethod
    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropy plus 1 - soft Dice, each averaged over the known masks.

        With cross-entropy alone the head predicts empty masks, since a finding covers about one pixel in fifty.

        Args:
            logits: (B, F, S, S).
            truth: (B, F, S, S) 1 or 0, or -1 throughout an unknown mask.
        """
        known = truth[..., 0, 0] >= 0  # (B, F): a mask is known or unknown as a whole
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
    """Train a head, and the backbone unless ``frozen``, by AdamW.

    Args:
        backbone: a :class:`Backbone`; trained in place.
        head: :class:`FindingHead` or :class:`MaskHead`.
        inputs: backbone inputs of the N training studies.
        truth: (N, …) targets of the head's loss.
        options: the recipe.
        seed: of the order of the studies.
        frozen: train the head alone.
        title: label of the progress bar.

    Returns:
        A function from the inputs of M studies to (M, …) logits, or with ``decided`` to booleans (logit > 0).
    """
    device = next(head.parameters()).device
    parameters = list(head.parameters()) + ([] if frozen else [p for p in backbone.parameters() if p.requires_grad])
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, options.steps))
    order = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    backbone.train(not frozen)
    with Progress(options.steps, title, "step") as progress:
        for _ in range(options.steps):
            while len(rows) < options.batch_size:  # every study once before any is repeated
                rows = torch.cat([rows, torch.randperm(len(truth), generator=order)])
            batch, rows = rows[: options.batch_size], rows[options.batch_size :]
            with torch.set_grad_enabled(not frozen):
                pooled, patches = backbone(*(tensor[batch] for tensor in inputs))
            loss = head.loss(head(pooled.float(), patches.float()), truth[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            progress.advance(1, loss=loss.item())
    backbone.eval()

    def apply(test_inputs: tuple[Tensor, ...], decided: bool = False) -> np.ndarray:
        outputs = []
        with torch.inference_mode():
            for batch in zip(*(tensor.split(EVALUATION_BATCH) for tensor in test_inputs), strict=True):
                logits = head(*(state.float() for state in backbone(*batch)))
                outputs.append(logits > 0 if decided else logits)
        return torch.cat(outputs).cpu().numpy()

    return apply


def _rate_factor(step: int, steps: int) -> float:
    """Return the learning-rate multiplier: linear warm-up over the first tenth, then cosine decay to 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module whose initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
