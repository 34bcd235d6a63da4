"""Segmentation of findings with a percentage of the masks: Dice of a linear head on the code states."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.metrics.images.dice import best_constant, dice_each
from medunifier.shared.metrics.samples import Samples, Statistic
from medunifier.stage2_unified.evaluate.classifiers.heads import MaskHead, seeded, train_head
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import Studies
from medunifier.stage2_unified.evaluate.tasks.reports import TRAIN

EXAMPLES = 8
LEAST_MASKS = 5
"""Minimum number of training and of test images with a mask; findings with fewer are not evaluated."""

FROZEN, FULL, SCRATCH = "frozen", "full", "scratch"


def evaluate_segmentation(
    context: EvaluationContext,
    train: Studies,
    studies: Studies,
    subsets: Mapping[int, np.ndarray],
    result: TaskResult,
) -> None:
    """Add Dice by percentage of the masks to ``result``; nothing if the data have no masks.

    ``finetune.frozen_dice_…``: a linear head on the code states of the frozen network; ``finetune.full_dice_…``: all
    weights; ``finetune.scratch_dice_…``: all weights from random initialisation. Dice is averaged over the images
    with the finding, then over findings. ``…_dice_all_…`` averages over all images: one without the finding counts 1
    if the predicted mask is empty and 0 otherwise, as in the SIIM-ACR competition. Baseline: the constant mask that
    is best on the training images. The threshold is probability 0.5.
    """
    data, options, seed = context.data, context.finetune, context.seed
    test_masks, train_masks = data.masks(context.split, studies), data.masks(TRAIN, train)
    findings = [
        name
        for name in OBSERVATIONS
        if name in test_masks
        and name in train_masks
        and min(len(_with_finding(test_masks[name])), len(_with_finding(train_masks[name]))) >= LEAST_MASKS
    ]
    if not findings:
        return
    truth, train_truth = (np.stack([masks[name] for name in findings], axis=1) for masks in (test_masks, train_masks))
    targets = torch.from_numpy(train_truth)
    codes, test_codes = data.codes(TRAIN, train), data.codes(context.split, studies)
    grid = (int(codes.shape[1]), int(codes.shape[2]))
    known = truth[..., 0, 0] >= 0  # (N, F)
    positive = (truth == 1).any(axis=(2, 3))  # (N, F)

    table: dict[str, np.ndarray] = {}
    statistics: dict[str, Statistic] = {}
    predicted: np.ndarray | None = None
    for method in (FROZEN, FULL, SCRATCH) if options.scratch else (FROZEN, FULL):
        for percent, rows in subsets.items():
            backbone = context.pipeline.image_backbone(seed if method == SCRATCH else None)
            head = seeded(partial(MaskHead, backbone.width, len(findings), grid, truth.shape[-1]), seed)
            head.to(next(backbone.parameters()).device)
            inputs = backbone.inputs(codes[rows], [train.views[i] for i in rows])
            title = f"segmentation ({method}, {percent} %)"
            apply = train_head(backbone, head, inputs, targets[rows], options, seed, method == FROZEN, title)
            masks = apply(backbone.inputs(test_codes, studies.views), decided=True)
            dice = np.stack([dice_each(masks[:, f], truth[:, f] == 1) for f in range(len(findings))], axis=1)
            for name, counted in (("dice", positive), ("dice_all", known)):
                column = f"{name}_{method}_{percent}"
                table[column] = np.where(counted, dice, np.nan)
                statistics[f"finetune.{method}_{name}_{percent}"] = Statistic("macro_mean", (column,))
            if method == SCRATCH:
                sides = (f"dice_full_{percent}", f"dice_scratch_{percent}")
                statistics[f"finetune.dice_gain_{percent}"] = Statistic("macro_mean_gain", sides)
            if method == FULL:
                predicted = masks  # finally of the largest percentage, which comes last
    samples = Samples("study", studies.ids, studies.patients, table, statistics)
    result.samples["segmentation"] = samples
    result.metrics |= samples.values() | _baselines(statistics, train_truth, truth, known, positive)
    assert predicted is not None  # noqa: S101 - narrows a type
    largest = max(subsets)
    result.details["segmentation"] = {
        "findings": {
            finding: {"images": int(positive[:, f].sum())}
            | {name: float(np.nanmean(column[:, f])) for name, column in table.items() if "_all_" not in name}
            for f, finding in enumerate(findings)
        },
        "train_images": {finding: len(_with_finding(train_masks[finding])) for finding in findings},
        "examples": _examples(context, studies, findings, truth, positive, predicted, result),
        "shown": f"all weights trained with {largest} % of the masks",
    }
    result.protocol["segmentation"] = findings


def _with_finding(masks: np.ndarray) -> np.ndarray:
    """Return the indices of the non-empty masks among (N, H, W)."""
    return np.flatnonzero((masks == 1).any(axis=(1, 2)))


def _baselines(
    statistics: Mapping[str, Statistic], train: np.ndarray, truth: np.ndarray, known: np.ndarray, positive: np.ndarray
) -> dict[str, float]:
    """Return the Dice of a constant mask by metric."""
    values: dict[str, list[float]] = {"dice": [], "dice_all": []}
    for f in range(truth.shape[1]):
        constant = best_constant(train[_with_finding(train[:, f]), f] == 1)
        dice = dice_each(np.broadcast_to(constant, truth[:, f].shape), truth[:, f] == 1)
        values["dice"].append(float(dice[positive[:, f]].mean()))
        # An empty mask for all is the other constant: it counts 1 on every image without the finding.
        values["dice_all"].append(max(float(dice[known[:, f]].mean()), float((~positive)[known[:, f], f].mean())))
    means = {name: float(np.mean(rows)) for name, rows in values.items()}
    return {
        f"{metric}.baseline": 0.0 if "gain" in metric else means["dice_all" if "_all_" in metric else "dice"]
        for metric in statistics
    }


def _examples(
    context: EvaluationContext,
    studies: Studies,
    findings: list[str],
    truth: np.ndarray,
    positive: np.ndarray,
    predicted: np.ndarray,
    result: TaskResult,
) -> list[dict[str, Any]]:
    """Return masks on the first images with each finding, by turns; add the images to ``result``."""
    order = sorted(
        (rank, f, int(row)) for f in range(len(findings)) for rank, row in enumerate(np.flatnonzero(positive[:, f]))
    )[:EXAMPLES]
    rows = []
    for number, (_, f, row) in enumerate(order):
        names = {kind: f"finetune-{kind}-{number}" for kind in ("image", "truth", "marked")}
        pixels = context.data.dataset(context.split)[studies.numbers[row]].images[studies.image_numbers[row]]
        image = pixels / np.iinfo(pixels.dtype).max
        result.pictures |= {
            names["image"]: image,
            names["truth"]: _overlay(image, truth[row, f] == 1),
            names["marked"]: _overlay(image, predicted[row, f]),
        }
        dice = float(dice_each(predicted[row, f][None], truth[row, f][None] == 1)[0])
        rows.append({"finding": findings[f], "study": studies.ids[row], "dice": dice, **names})
    return rows


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lighten the pixels of the mask and darken the others: (H, W) in [0, 1]."""
    return np.where(mask, 0.5 + 0.5 * image, 0.5 * image)
