"""The pointing game: whether the code that agrees most with a finding's prompt lies in the finding's mask."""

from collections.abc import Sequence

import numpy as np

from medunifier.shared.metrics.samples import Samples, Statistic
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import Studies
from medunifier.stage2_unified.inference.prompts import PromptSet

LEAST_MASKS = 5
"""Images with a mask of a finding from which on the finding counts."""


def add_pointing_game(
    context: EvaluationContext, studies: Studies, prompts: PromptSet, findings: Sequence[str], result: TaskResult
) -> None:
    """Add ``zero_shot.pointing`` to a zero-shot result; nothing if the data have too few masks.

    A hit is an image with a mask of the finding in which the code of the highest value in the similarity map of the
    positive against the negative prompt covers a pixel of the mask. The figure is the mean over the images with a
    mask, then over findings. Baseline: a code at random.
    """
    data = context.data
    if not (data.has_images and hasattr(context.pipeline, "similarity_maps")):
        return
    codes, every = data.codes(context.split, studies), data.masks(context.split, studies)
    section = context.pipeline.sections.split("+")[0]
    hits, chance = {}, {}
    for finding in findings:
        positive, negative = prompts.prompts[finding]
        marked = (every[finding] == 1).any(axis=(1, 2)) if finding in every else np.zeros(0)
        rows = np.flatnonzero(marked)
        if len(rows) < LEAST_MASKS or not negative:
            continue
        cells = covered_cells(every[finding][rows] == 1, codes.shape[1:])  # (n, h, w)
        texts = [{"findings": "", "impression": ""} | {section: side[0]} for side in (positive, negative)]
        maps = context.pipeline.similarity_maps(codes[rows], [studies.views[i] for i in rows], *texts, codes)
        best = maps.reshape(len(rows), -1).argmax(axis=1)
        hits[finding] = np.full(len(studies), np.nan)
        hits[finding][rows] = cells.reshape(len(rows), -1)[np.arange(len(rows)), best]
        chance[finding] = float(cells.mean())
    if not hits:
        return
    table = {"hit": np.stack(list(hits.values()), axis=1)}
    statistics = {"zero_shot.pointing": Statistic("macro_mean", ("hit",))}
    samples = Samples("study", studies.ids, studies.patients, table, statistics)
    result.samples["pointing"] = samples
    result.metrics |= samples.values() | {"zero_shot.pointing.baseline": float(np.mean(list(chance.values())))}
    result.details["pointing"] = {
        finding: {"images": int(np.isfinite(hit).sum()), "hits": float(np.nanmean(hit)), "chance": chance[finding]}
        for finding, hit in hits.items()
    }


def covered_cells(masks: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """(N, H, W) bool masks -> (N, h, w) bool, whether a cell of the grid covers a pixel of the mask."""
    rows, columns = (
        np.linspace(0, side, cells + 1).astype(int)[:-1] for side, cells in zip(masks.shape[1:], grid, strict=True)
    )
    return np.logical_or.reduceat(np.logical_or.reduceat(masks, rows, axis=1), columns, axis=2)
