"""How sure the model is of a finding: the share of sampled draft reports that state it.

A report that is written word by word is a sample of what the model holds possible. The labeler reads findings out of
many such samples, and their shares are probabilities of the model's, calibrated to no disease. This asks what was
trained on every word; sentences that the contrast compares ask what has seen whole reports alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.observations import OBSERVATIONS

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


def sampled_probability(
    pipeline: "MedUnifierPipeline", codes: np.ndarray, views: Sequence[str], drafts: int = 16, seed: int = 0
) -> dict[str, np.ndarray]:
    """What so many drafts of each radiograph state.

    Args:
        pipeline: the model.
        codes: (N, h, w).
        views: N view positions.
        drafts: reports sampled a radiograph, at temperature 1; shares are multiples of 1 / drafts.
        seed: of each radiograph's sampling, so that it has the same drafts alone and beside others.

    Returns:
        {observation in lower case: (N,) shares of drafts that state it}; a draft that doubts it counts half.
    """
    shares = {name.lower(): np.zeros(len(codes)) for name in OBSERVATIONS}
    for number, (grid, view) in enumerate(zip(codes, views, strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            written = pipeline.write_reports(
                np.repeat(grid[None], drafts, axis=0), [view] * drafts, do_sample=True, temperature=1.0, top_k=0
            )
        for report in written:
            for name, value in label_report("\n".join(report.values())).items():
                shares[name.lower()][number] += {1: 1.0, -1: 0.5}.get(value, 0.0) / drafts
    return shares
