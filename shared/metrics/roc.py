"""The ROC curve of a score, thinned to what a drawing needs."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_curve

POINTS = 64


def roc_points(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) from (0, 0) to (1, 1), at most :data:`POINTS` of them.

    Args:
        truth: (N,) 1, 0, or NaN for rows that do not count.
        scores: (N,) floats, higher means present.

    Returns:
        The points; none where a class is absent.
    """
    counts = ~np.isnan(truth)
    truth, scores = truth[counts], scores[counts]
    if len(np.unique(truth)) < 2:
        return []
    false, true, _ = roc_curve(truth, scores)
    chosen = np.unique(np.linspace(0, len(false) - 1, min(POINTS, len(false))).round().astype(int))
    return [(round(float(false[i]), 5), round(float(true[i]), 5)) for i in chosen]


def roc_per_finding(
    truth: np.ndarray, scores: np.ndarray, findings: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """:func:`roc_points` of each finding of which both classes are present; (N, F) each."""
    curves = {name: roc_points(truth[:, i], scores[:, i]) for i, name in enumerate(findings)}
    return {name: points for name, points in curves.items() if points}
