"""Retrieval: recall at k both ways, identical texts counted as one, and precision at k by class.

In Open-I 302 of 3,955 studies share one impression. A text that several images share is therefore one
candidate (CXR-CLIP de-duplicates likewise), and as a query it is answered by any of its images.
"""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from scipy.stats import rankdata

KS = (1, 5, 10)
PRECISION_KS = (5, 10, 100)


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


def ranks_both_ways(
    similarity: np.ndarray, image_text: Sequence[int] | np.ndarray, text: Sequence[int] | np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rank at which each image meets its text, and each distinct text one of its images.

    Args:
        similarity: (N images, M texts) floats, higher is nearer.
        image_text: (N,) identity of the normalised text that belongs to each image.
        text: (M,) identity of each column's normalised text; of equal ones the first column counts.

    Returns:
        ``image_to_text`` and ``text_to_image``: ranks from 1 of the queries, and the (queries, candidates)
        booleans of what answers them. Texts are in the order of their identities.

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
    return {way: (first_relevant_rank(*pair), pair[1]) for way, pair in ways.items()}


def recall_at_k(
    similarity: np.ndarray,
    image_text: Sequence[int] | np.ndarray,
    text: Sequence[int] | np.ndarray,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """R@k image -> text and text -> image, each with its chance value.

    Args:
        similarity, image_text, text: as of :func:`ranks_both_ways`.
        ks: how many of the nearest are looked at.

    Returns:
        ``image_to_text_r{k}``, ``text_to_image_r{k}``, each in [0, 1], beside ``….baseline``: the expected
        value under a random order of the candidates.

    Raises:
        ValueError: if the shapes do not fit, an image's text is not among the texts, or the reverse.
    """
    metrics: dict[str, float] = {}
    for way, (ranks, relevant) in ranks_both_ways(similarity, image_text, text).items():
        for k in ks:
            metrics[f"{way}_r{k}"] = float((ranks <= k).mean())
            metrics[f"{way}_r{k}.baseline"] = chance_recall(relevant, k)
    return metrics


def precision_at_k(scores: np.ndarray, query_class: np.ndarray, candidate_class: np.ndarray, k: int) -> np.ndarray:
    """Return the fraction of each query's k nearest candidates that share its class.

    This is GLoRIA's measure on CheXpert 5x200. Ties are resolved pessimistically, as for recall: among
    equal scores, candidates of another class come first.

    Args:
        scores: (queries, candidates) floats, higher is nearer.
        query_class, candidate_class: identities of the classes.
        k: at most as many as there are candidates.

    Returns:
        (queries,) in [0, 1]; its mean over the queries of a class is that class' P@k.

    Raises:
        ValueError: if shapes do not fit, a score is not finite, or k exceeds the candidates.
    """
    queries, candidates = np.asarray(query_class), np.asarray(candidate_class)
    if scores.shape != (len(queries), len(candidates)) or not 1 <= k <= len(candidates):
        raise ValueError(f"P@{k} of scores {scores.shape} for {len(queries)} queries, {len(candidates)} candidates")
    if not np.isfinite(scores).all():
        raise ValueError("the similarities hold values that are not finite")
    relevant = queries[:, None] == candidates[None, :]
    order = np.lexsort((relevant, -np.asarray(scores, dtype=np.float64)), axis=1)[:, :k]
    return np.take_along_axis(relevant, order, axis=1).mean(axis=1)


def rerank(scores: np.ndarray, top: int, match: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Re-rank the first ``top`` candidates of each query by a second, more expensive score.

    The others follow behind in their old order: a candidate that the first score does not rank high the
    second one never sees.

    Args:
        scores: (queries, candidates) floats, higher is nearer.
        top: number of candidates per query to re-rank.
        match: (P,) query numbers and (P,) candidate numbers -> (P,) finite second scores.

    Returns:
        (queries, candidates) scores with this order; equal second scores keep the first order.
    """
    queries, candidates = scores.shape
    top = min(top, candidates)
    first = np.argsort(-scores, axis=1, kind="stable")[:, :top]  # (queries, top)
    second = match(np.repeat(np.arange(queries), top), first.ravel()).reshape(queries, top)
    # Ranks in place of scores: the two scores have different scales. Equal second scores keep the first order.
    ranks = rankdata(scores, axis=1)
    place = np.argsort(np.argsort(-second, axis=1, kind="stable"), axis=1)
    np.put_along_axis(ranks, first, candidates + top - place.astype(float), axis=1)
    return ranks


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
