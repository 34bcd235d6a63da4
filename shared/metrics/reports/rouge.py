"""ROUGE-L: the longest common subsequence of a written report and its reference."""

from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from medunifier.shared.metrics.reports.report_text import clean


def rouge_l(written: Sequence[str], references: Sequence[str]) -> float:
    """Mean of :func:`rouge_l_each`."""
    return float(rouge_l_each(written, references).mean())


def rouge_l_each(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N,) F1 of ROUGE-L of each report, by the `rouge-score` library, without stemming.

    The library's measure weighs precision and recall equally; pycocoevalcap, and so R2Gen, has β = 1.2,
    which lies nearer to recall. Both texts are cleaned first; the library drops the full stops.

    Args:
        written, references: N texts each, in the same order. An empty text scores 0.

    Raises:
        ValueError: if the two differ in length, or are empty.
    """
    if len(written) != len(references) or not references:
        raise ValueError(f"{len(written)} texts for {len(references)} references; at least one pair is needed")
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(written, references, strict=True)
    return np.array([scorer.score(clean(reference), clean(text))["rougeL"].fmeasure for text, reference in pairs])
