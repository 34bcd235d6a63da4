"""Retrieval metrics from image-text similarities of any system: recall at k, and precision at k by class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medunifier.shared.metrics.retrieval import (
    KS,
    PRECISION_KS,
    chance_recall,
    first_relevant_rank,
    precision_at_k,
    rerank,
)
from medunifier.shared.metrics.samples import Samples, mean_of
from medunifier.stage2_unified.evaluate.results.result import digest

NO_CLASS = ""


@dataclass(frozen=True)
class Pool:
    """Retrieval pool: N images and M texts.

    Attributes:
        ids, patients: of the N images.
        image_text: (N,) identity of each image's text; equal texts have one identity.
        text: (M,) identity of each column's text.
        classes: (N,) class of each image and of its text, "" for none; or None.
    """

    ids: Sequence[str]
    patients: Sequence[str]
    image_text: np.ndarray
    text: np.ndarray
    classes: np.ndarray | None = None

    @property
    def columns(self) -> np.ndarray:
        """Index of the first column of each distinct text, in the order of the identities."""
        return np.unique(self.text, return_index=True)[1]

    def protocol(self) -> dict[str, str]:
        """Return what two results must have in common to be compared: the pool and its classes."""
        texts = [np.asarray(self.image_text).tolist(), np.unique(self.text).tolist()]
        classes = None if self.classes is None else list(map(str, self.classes))
        return {"pool_sha256": digest([list(self.ids), texts]), "classes_sha256": digest(classes)}


@dataclass(frozen=True)
class RetrievalScores:
    """Result of :func:`score_retrieval`.

    Attributes:
        metrics: values, and baselines by chance.
        samples: scores by group: the images, and the distinct texts.
        details: for the result file.
        ranks: (N,) rank of each image's text.
    """

    metrics: dict[str, float]
    samples: dict[str, Samples]
    details: dict[str, Any]
    ranks: np.ndarray


Match = Callable[[np.ndarray, np.ndarray], np.ndarray]


def score_retrieval(similarity: np.ndarray, pool: Pool, top: int = 0, match: Match | None = None) -> RetrievalScores:
    """Return R@1/5/10 and, if the pool has classes, P@5/10/100 in both directions; identical texts count as one.

    Args:
        similarity: (N, M) floats, higher is more similar.
        pool: the images and texts.
        top: number of candidates per query that ``match`` reorders; 0 = none.
        match: re-ranking model: (P,) image numbers and (P,) column numbers -> (P,) scores.

    Raises:
        ValueError: if shapes do not match, or a query has no relevant candidate.
    """
    columns = pool.columns
    all_scores = np.asarray(similarity, dtype=np.float64)
    scores = all_scores[:, columns]
    relevant = np.asarray(pool.image_text)[:, None] == np.asarray(pool.text)[columns][None, :]
    details: dict[str, Any] = {"pool": len(pool.ids), "distinct_reports": len(columns)}
    ranks = first_relevant_rank(scores, relevant)
    images = _hits("retrieval.image_to_text", ranks)
    texts = _hits("retrieval.text_to_image", first_relevant_rank(scores.T, relevant.T))
    metrics = {f"retrieval.image_to_text_r{k}.baseline": chance_recall(relevant, k) for k in KS}
    metrics |= {f"retrieval.text_to_image_r{k}.baseline": chance_recall(relevant.T, k) for k in KS}
    if top and match is not None:
        by_image = rerank(scores, top, lambda query, candidate: match(query, columns[candidate]))
        by_text = rerank(scores.T, top, lambda query, candidate: match(candidate, columns[query]))
        images |= _hits("retrieval.reranked_image_to_text", first_relevant_rank(by_image, relevant))
        texts |= _hits("retrieval.reranked_text_to_image", first_relevant_rank(by_text, relevant.T))
        details["reranked"] = min(top, *scores.shape)
    if pool.classes is not None:
        by_class, chance = _precisions(all_scores, pool, details)
        images |= by_class
        metrics |= chance
    first = [int(np.argmax(column)) for column in relevant.T]  # a text is named after its first image
    samples = {
        "retrieval-images": _group("image", pool.ids, pool.patients, images),
        "retrieval-texts": _group(
            "distinct text", [f"text of {pool.ids[i]}" for i in first], [pool.patients[i] for i in first], texts
        ),
    }
    for group in samples.values():
        metrics |= group.values()
    return RetrievalScores(metrics, samples, details, ranks)


def _hits(name: str, ranks: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}_r{k}": (ranks <= k).astype(float) for k in KS}


def _group(unit: str, ids: Sequence[str], patients: Sequence[str], columns: dict[str, np.ndarray]) -> Samples:
    """Return samples of which each column's mean is a metric."""
    return Samples(unit, list(ids), list(patients), columns, {name: mean_of(name) for name in columns})


def _precisions(
    similarity: np.ndarray, pool: Pool, details: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return P@k columns, NaN for images without a class, and their chance values; add the table by class to details.

    Candidates are the texts (images) of the images with a class, one each: as in the published protocol, a text
    shared by two studies counts twice.
    """
    assert pool.classes is not None  # noqa: S101 - narrows a type
    classes = np.asarray(pool.classes, dtype=str)
    rows = np.flatnonzero(classes != NO_CLASS)
    row_classes = classes[rows]
    names = sorted(set(row_classes.tolist()))
    details["classes"] = {name: int((row_classes == name).sum()) for name in names}
    if len(names) < 2:
        return {}, {}
    first_column = {identity: j for j, identity in reversed(list(enumerate(np.asarray(pool.text).tolist())))}
    row_columns = [first_column[identity] for identity in np.asarray(pool.image_text)[rows].tolist()]
    table = similarity[np.ix_(rows, row_columns)]  # (images with a class, their texts)
    prevalence = float(np.mean([(row_classes == name).mean() for name in row_classes]))
    columns: dict[str, np.ndarray] = {}
    chance: dict[str, float] = {}
    details["precision_by_class"] = {name: {} for name in names}
    for direction, scores in (("image_to_text", table), ("text_to_image", table.T)):
        for k in PRECISION_KS:
            if k > len(rows):
                continue
            values = np.full(len(classes), np.nan)
            values[rows] = precision_at_k(scores, row_classes, row_classes, k)
            metric = f"retrieval.{direction}_p{k}"
            columns[metric], chance[f"{metric}.baseline"] = values, prevalence
            for name in names:
                details["precision_by_class"][name][f"{direction} P@{k}"] = float(values[classes == name].mean())
    return columns, chance


def exclusive_class(labels: Sequence[dict[str, int]], findings: Sequence[str]) -> np.ndarray:
    """Return each study's only positive finding of a set, "" if it has none, several, or an uncertain one."""
    classes = []
    for row in labels:
        positive = [name for name in findings if row.get(name) == 1]
        uncertain = any(row.get(name) == -1 for name in findings)
        classes.append(positive[0] if len(positive) == 1 and not uncertain else NO_CLASS)
    return np.array(classes, dtype=str)
