"""Clinical F1: whether a written report states the findings that are there, by the labels of both.

Papers differ on uncertain mentions: f1chexbert and RadEval count them as positive, R2Gen as negative.
Both rules are here, and a result gives both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Labels = Mapping[str, int]
Uncertain = Literal["positive", "negative"]


def stated(labels: Sequence[Labels], findings: Sequence[str], uncertain: Uncertain) -> np.ndarray:
    """(N, F) booleans: the finding is stated. Not mentioned and denied are both false.

    Args:
        labels: N dicts ``{finding: 1 | 0 | -1}``.
        findings: names of the F columns.
        uncertain: what -1 counts as.
    """
    positive = {1, -1} if uncertain == "positive" else {1}
    rows = [[row.get(name) in positive for name in findings] for row in labels]
    return np.array(rows, dtype=bool).reshape(len(labels), len(findings))


def f1_counts(
    predicted: Sequence[Labels], truth: Sequence[Labels], findings: Sequence[str], uncertain: Uncertain = "positive"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What F1 is summed from: (N, F) booleans each of stated by both, by the prediction, by the truth.

    Raises:
        ValueError: if the two differ in length.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} predictions for {len(truth)} references")
    p, t = stated(predicted, findings, uncertain), stated(truth, findings, uncertain)
    return p & t, p, t


def f1_of(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return (micro, macro) F1 from the counts of rows; NaN if neither side states any finding.

    A finding that neither side states has no F1 and is excluded from the macro mean; one that is only
    stated wrongly counts 0.
    """
    sums = np.stack([hits.sum(axis=0), predicted.sum(axis=0), true.sum(axis=0)]).astype(float)
    each = _f1(*sums)
    defined = each[np.isfinite(each)]
    return float(_f1(*sums.sum(axis=1))), float(defined.mean()) if len(defined) else float("nan")


def _f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    total = np.asarray(predicted + true, dtype=float)
    return np.divide(2 * hits, total, out=np.full_like(total, np.nan), where=total > 0)


def clinical_f1(
    predicted: Sequence[Labels], truth: Sequence[Labels], findings: Sequence[str], uncertain: Uncertain = "positive"
) -> dict[str, Any]:
    """Micro and macro F1 over ``findings``, and precision, recall, F1 and support of each.

    Args:
        predicted, truth: N label dicts each, in the same order.
        findings: the observations to score over (14, or the 5 of the leaderboard).
        uncertain: what -1 counts as, on both sides.

    Returns:
        ``{"micro", "macro", "findings_scored", "per_finding": {finding: {"precision", "recall", "f1",
        "support"}}}``; precision, recall and F1 are None where undefined, micro and macro are NaN if
        neither side states any finding.

    Raises:
        ValueError: if the two differ in length.
    """
    rows = f1_counts(predicted, truth, findings, uncertain)
    micro, macro = f1_of(*rows)
    hits, stated, true = (row.sum(axis=0) for row in rows)
    each = _f1(hits, stated, true)
    defined = np.isfinite(each)
    per_finding = {
        name: {
            "precision": float(hits[i] / stated[i]) if stated[i] else None,
            "recall": float(hits[i] / true[i]) if true[i] else None,
            "f1": float(each[i]) if defined[i] else None,
            "support": int(true[i]),
        }
        for i, name in enumerate(findings)
    }
    return {"micro": micro, "macro": macro, "findings_scored": int(defined.sum()), "per_finding": per_finding}


def best_constant(train: Sequence[Labels], findings: Sequence[str], uncertain: Uncertain = "positive") -> Labels:
    """Return the set of findings which, predicted for every study, has the highest micro F1 on the training labels.

    For a constant set S micro F1 is 2 · Σ n_f / (N · |S| + Σ n), so the best set of a given size is that of
    the most frequent findings: it is enough to try the prefixes. It is at least as good as the most
    frequent report, hence the fair floor for a model that does not look at the image.

    Returns:
        ``{finding: 1}``.

    Raises:
        ValueError: without training labels.
    """
    if not train:
        raise ValueError("a constant prediction needs training labels")
    counts = stated(train, findings, uncertain).sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    sizes = np.arange(1, len(findings) + 1)
    scores = 2 * np.cumsum(counts[order]) / (len(train) * sizes + max(1, counts.sum()))
    return {findings[i]: 1 for i in order[: int(np.argmax(scores)) + 1]}
