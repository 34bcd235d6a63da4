"""Segmentation by masks: does the network know where a finding lies, and with how few masks does it learn it?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.metrics.images.dice import best_constant, dice_each
from medunifier.shared.metrics.samples import Samples, Statistic
from medunifier.stage2_unified.evaluate.classifiers.heads import MaskHead, fresh, train_head
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import Studies
from medunifier.stage2_unified.evaluate.tasks.reports import TRAIN

EXAMPLES = 8
LEAST_MASKS = 5
"""Training and test images with the finding marked, below which it is not judged."""

FROZEN, FULL, SCRATCH = "frozen", "full", "scratch"


def evaluate_segmentation(
    judging: EvaluationContext,
    train: Studies,
    studies: Studies,
    subsets: Mapping[int, np.ndarray],
    result: TaskResult,
) -> None:
    """Dice by share of the masks, added to the result of the task; nothing where the data have no masks.

    ``finetune.frozen_dice_…``: a linear head on the states of the codes of the frozen network;
    ``finetune.full_dice_…``: the network trained with it; ``finetune.scratch_dice_…``: from fresh weights. It is the
    mean over findings of the mean over the images that have the finding. ``…_dice_all_…`` is over all images: one
    without the finding counts 1 if nothing is marked and 0 otherwise, as in SIIM-ACR's competition. Baseline: the one
    mask that serves the training images best. A pixel is marked at even odds.
    """
    data, options, seed = judging.data, judging.finetune, judging.seed
    of_test, of_train = data.masks(judging.split, studies), data.masks(TRAIN, train)
    findings = [
        name
        for name in OBSERVATIONS
        if name in of_test
        and name in of_train
        and min(len(_marked(of_test[name])), len(_marked(of_train[name]))) >= LEAST_MASKS
    ]
    if not findings:
        return
    truth, train_truth = (np.stack([side[name] for name in findings], axis=1) for side in (of_test, of_train))
    targets = torch.from_numpy(train_truth)
    codes, test_codes = data.codes(TRAIN, train), data.codes(judging.split, studies)
    grid = (int(codes.shape[1]), int(codes.shape[2]))
    known = truth[..., 0, 0] >= 0  # (N, F)
    there = (truth == 1).any(axis=(2, 3))

    table: dict[str, np.ndarray] = {}
    statistics: dict[str, Statistic] = {}
    shown: np.ndarray | None = None
    for way in (FROZEN, FULL, SCRATCH) if options.scratch else (FROZEN, FULL):
        for share, rows in subsets.items():
            backbone = judging.pipeline.image_backbone(seed if way == SCRATCH else None)
            head = fresh(partial(MaskHead, backbone.width, len(findings), grid, truth.shape[-1]), seed)
            head.to(next(backbone.parameters()).device)
            inputs = backbone.inputs(codes[rows], [train.views[i] for i in rows])
            title = f"segmentation ({way}, {share} %)"
            apply = train_head(backbone, head, inputs, targets[rows], options, seed, way == FROZEN, title)
            marked = apply(backbone.inputs(test_codes, studies.views), decided=True)
            dice = np.stack([dice_each(marked[:, f], truth[:, f] == 1) for f in range(len(findings))], axis=1)
            for name, counted in (("dice", there), ("dice_all", known)):
                column = f"{name}_{way}_{share}"
                table[column] = np.where(counted, dice, np.nan)
                statistics[f"finetune.{way}_{name}_{share}"] = Statistic("macro_mean", (column,))
            if way == SCRATCH:
                sides = (f"dice_full_{share}", f"dice_scratch_{share}")
                statistics[f"finetune.dice_gain_{share}"] = Statistic("macro_mean_gain", sides)
            if way == FULL:
                shown = marked  # of the largest share, which comes last
    samples = Samples("study", studies.ids, studies.patients, table, statistics)
    result.samples["segmentation"] = samples
    result.metrics |= samples.values() | _baselines(statistics, train_truth, truth, known, there)
    assert shown is not None
    largest = max(subsets)
    result.details["segmentation"] = {
        "findings": {
            finding: {"images": int(there[:, f].sum())}
            | {name: float(np.nanmean(column[:, f])) for name, column in table.items() if "_all_" not in name}
            for f, finding in enumerate(findings)
        },
        "train_images": {finding: len(_marked(of_train[finding])) for finding in findings},
        "examples": _examples(judging, studies, findings, truth, there, shown, result),
        "shown": f"the whole network with {largest} % of the masks",
    }
    result.protocol["segmentation"] = findings


def _marked(masks: np.ndarray) -> np.ndarray:
    """Rows of (N, H, W) masks that mark anything."""
    return np.flatnonzero((masks == 1).any(axis=(1, 2)))


def _baselines(
    statistics: Mapping[str, Statistic], train: np.ndarray, truth: np.ndarray, known: np.ndarray, there: np.ndarray
) -> dict[str, float]:
    """What one mask for all earns, by figure."""
    values: dict[str, list[float]] = {"dice": [], "dice_all": []}
    for f in range(truth.shape[1]):
        constant = best_constant(train[_marked(train[:, f]), f] == 1)
        dice = dice_each(np.broadcast_to(constant, truth[:, f].shape), truth[:, f] == 1)
        values["dice"].append(float(dice[there[:, f]].mean()))
        # Nothing marked anywhere is the other constant: right wherever there is nothing.
        values["dice_all"].append(max(float(dice[known[:, f]].mean()), float((~there)[known[:, f], f].mean())))
    means = {name: float(np.mean(rows)) for name, rows in values.items()}
    return {
        f"{figure}.baseline": 0.0 if "gain" in figure else means["dice_all" if "_all_" in figure else "dice"]
        for figure in statistics
    }


def _examples(
    judging: EvaluationContext,
    studies: Studies,
    findings: list[str],
    truth: np.ndarray,
    there: np.ndarray,
    marked: np.ndarray,
    result: TaskResult,
) -> list[dict[str, Any]]:
    """Findings on the first images that have them, in turns; adds the pictures."""
    places = sorted(
        (int(turn), f, int(row)) for f in range(len(findings)) for turn, row in enumerate(np.flatnonzero(there[:, f]))
    )[:EXAMPLES]
    rows = []
    for number, (_, f, row) in enumerate(places):
        names = {kind: f"finetune-{kind}-{number}" for kind in ("image", "truth", "marked")}
        pixels = judging.data.dataset(judging.split)[studies.numbers[row]].images[studies.image_numbers[row]]
        image = pixels / np.iinfo(pixels.dtype).max
        result.pictures |= {
            names["image"]: image,
            names["truth"]: _over(image, truth[row, f] == 1),
            names["marked"]: _over(image, marked[row, f]),
        }
        dice = float(dice_each(marked[row, f][None], truth[row, f][None] == 1)[0])
        rows.append({"finding": findings[f], "study": studies.ids[row], "dice": dice, **names})
    return rows


def _over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image darkened, but for the marked pixels, which are lightened: (H, W) in [0, 1]."""
    return np.where(mask, 0.5 + 0.5 * image, 0.5 * image)
