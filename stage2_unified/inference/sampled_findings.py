"""Sampled-report probabilities: the fraction of sampled reports that state a finding.

Reports sampled token by token are samples from the model's distribution. The labeler extracts the findings of each,
and their frequencies are probabilities under the model, not calibrated to disease. They come from the language-model
head, which is trained on every token; zero-shot prompts use the contrastive embeddings of whole reports.
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
    pipeline: "MedUnifierPipeline", codes: np.ndarray, views: Sequence[str], samples: int = 16, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the fraction of sampled reports that state each observation.

    Args:
        pipeline: the model.
        codes: (N, h, w).
        views: N view positions.
        samples: reports per radiograph, sampled at temperature 1.
        seed: set for each radiograph, so its reports do not depend on the rest of the batch.

    Returns:
        {lower-case observation: (N,) fraction of reports that state it}; an uncertain mention counts half.
    """
    fractions = {name.lower(): np.zeros(len(codes)) for name in OBSERVATIONS}
    for number, (grid, view) in enumerate(zip(codes, views, strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            written = pipeline.write_reports(
                np.repeat(grid[None], samples, axis=0), [view] * samples, do_sample=True, temperature=1.0, top_k=0
            )
        for report in written:
            for name, value in label_report("\n\n".join(report.values())).items():
                fractions[name.lower()][number] += {1: 1.0, -1: 0.5}.get(value, 0.0) / samples
    return fractions
