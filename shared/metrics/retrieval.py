"""Retrieval: recall at k, both ways between images and texts, identical texts counted as one.

In Open-I 302 of 3,955 studies share one impression. A text that several images share is therefore one
candidate (CXR-CLIP de-duplicates likewise), and as a query it is answered by any of its images.
"""

from collections.abc import Sequence
from math import comb

import numpy as np

KS = (1, 5, 10)


def first_relevant_rank(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank (1 = best) at which each query meets the first candidate that answers it.

    Ties are resolved pessimistically: every irrelevant candidate with the same score stands before the
    relevant one. So a constant score earns a recall of 0 and not of chance, and a collapsed embedding
    cannot look lucky.

    Args:
        scores: (queries, candidates) floats, higher is nearer.
        relevant: (queries, candidates) booleans, at least one true a row.

    Returns:
        (queries,) integers from 1.

    Raises:
        ValueError: if a query has no relevant candidate, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("the similarities hold values that are not finite")
    if not relevant.any(axis=1).all():
        raise ValueError(f"query {int(np.argmin(relevant.any(axis=1)))} has no candidate that answers it")
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~relevant).sum(axis=1)


def recall_at_k(
    similarity: np.ndarray,
    image_text: Sequence[int] | np.ndarray,
    text: Sequence[int] | np.ndarray,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """R@k image -> text and text -> image, each with its chance value.

    Args:
        similarity: (N images, M texts) floats, higher is nearer.
        image_text: (N,) identity of the normalised text that belongs to each image.
        text: (M,) identity of each column's normalised text; of equal ones the first column counts.
        ks: how many of the nearest are looked at.

    Returns:
        ``image_to_text_r{k}``, ``text_to_image_r{k}``, each in [0, 1], beside ``….baseline``: the expected
        value under a random order of the candidates.

    Raises:
        ValueError: if the shapes do not fit, an image's text is not among the texts, or the reverse.
    """
    images, texts = np.asarray(image_text), np.asarray(text)
    if similarity.shape != (len(images), len(texts)):
        raise ValueError(f"similarity is {similarity.shape}, the identities say {(len(images), len(texts))}")
    unique, columns = np.unique(texts, return_index=True)
    scores = np.asarray(similarity, dtype=np.float64)[:, columns]
    relevant = images[:, None] == unique[None, :]
    ways = {"image_to_text": (scores, relevant), "text_to_image": (scores.T, relevant.T)}
    metrics: dict[str, float] = {}
    for way, (way_scores, way_relevant) in ways.items():
        ranks = first_relevant_rank(way_scores, way_relevant)
        for k in ks:
            metrics[f"{way}_r{k}"] = float((ranks <= k).mean())
            metrics[f"{way}_r{k}.baseline"] = chance_recall(way_relevant, k)
    return metrics


def chance_recall(relevant: np.ndarray, k: int) -> float:
    """Expected recall at k if the candidates stood in a random order.

    A query with c answers among n candidates misses all of them with probability C(n - c, k) / C(n, k).

    Args:
        relevant: (queries, candidates) booleans.
        k: how many of the nearest are looked at.
    """
    candidates = relevant.shape[1]
    k = min(k, candidates)
    answers, queries = np.unique(relevant.sum(axis=1), return_counts=True)
    hits = [1 - comb(candidates - int(c), k) / comb(candidates, k) for c in answers]
    return float(np.average(hits, weights=queries))
