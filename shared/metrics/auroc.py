"""Area under the ROC curve per finding, its mean over the findings that can have one, and its interval."""

from collections.abc import Sequence

import numpy as np

from medunifier.shared.metrics.bootstrap import bootstrap_interval


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """AUROC of one score; NaN where one class is absent. A tie counts one half.

    It is the Mann-Whitney statistic over the mean ranks: the same as `sklearn.metrics.roc_auc_score`, twenty
    times faster, which a bootstrap over fourteen findings needs.

    Args:
        truth: (N,) 1, 0, or NaN for rows that do not count (uncertain).
        scores: (N,) floats, higher means present.
    """
    from scipy.stats import rankdata  # here: a training begins without it

    counts = ~np.isnan(truth)
    truth, scores = truth[counts], scores[counts]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    above = rankdata(scores)[truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def auroc_per_finding(truth: np.ndarray, scores: np.ndarray, findings: Sequence[str]) -> dict[str, float]:
    """AUROC of each finding of which both classes are present; the others have no entry.

    Args:
        truth: (N, F) 1, 0, or NaN.
        scores: (N, F).
        findings: names of the F columns.
    """
    values = {name: auroc(truth[:, i], scores[:, i]) for i, name in enumerate(findings)}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def macro_auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean AUROC over the findings with both classes; NaN if there is none. Shapes as above."""
    values = np.array([auroc(truth[:, i], scores[:, i]) for i in range(truth.shape[1])])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def macro_auroc_interval(
    truth: np.ndarray, scores: np.ndarray, patients: Sequence[str], count: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval by patient of :func:`macro_auroc`."""
    return bootstrap_interval(lambda rows: macro_auroc(truth[rows], scores[rows]), patients, count, seed=seed)


def truth_matrix(labels: Sequence[dict[str, int]], findings: Sequence[str]) -> np.ndarray:
    """Labels as (N, F) floats: 1 present; 0 denied or not mentioned; NaN uncertain, which no AUROC counts."""
    values = {1: 1.0, 0: 0.0, -1: np.nan}
    return np.array([[values[row.get(name, 0)] for name in findings] for row in labels], dtype=np.float64).reshape(
        len(labels), len(findings)
    )
