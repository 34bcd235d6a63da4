"""Similarities between radiographs and reports, whoever computed them: recall at k, and precision at k by class."""

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
    """What is retrieved from: N images and M texts.

    Attributes:
        ids, patients: of the N images.
        image_text: (N,) identity of the text that belongs to each image; equal texts have one identity.
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
        """First column of each distinct text, in the order of the identities."""
        return np.unique(self.text, return_index=True)[1]

    def protocol(self) -> dict[str, str]:
        """What two systems must have retrieved from to be compared."""
        texts = [np.asarray(self.image_text).tolist(), np.unique(self.text).tolist()]
        classes = None if self.classes is None else list(map(str, self.classes))
        return {"pool_sha256": digest([list(self.ids), texts]), "classes_sha256": digest(classes)}


@dataclass(frozen=True)
class RetrievalScores:
    """What :func:`score_retrieval` finds.

    Attributes:
        metrics: figures and their chance values.
        samples: rows by group: the images, and the distinct texts.
        details: for the result file.
        ranks: (N,) at which each image meets its text.
    """

    metrics: dict[str, float]
    samples: dict[str, Samples]
    details: dict[str, Any]
    ranks: np.ndarray


Match = Callable[[np.ndarray, np.ndarray], np.ndarray]


def score_retrieval(similarity: np.ndarray, pool: Pool, top: int = 0, match: Match | None = None) -> RetrievalScores:
    """R@1/5/10 both ways, identical texts as one, and where there are classes P@5/10/100 both ways.

    Args:
        similarity: (N, M) floats, higher is nearer.
        pool: whose they are.
        top: candidates a query that a second judge puts in order; 0 = none.
        match: the second judge: (P,) image numbers and (P,) column numbers -> (P,) scores.

    Raises:
        ValueError: if shapes do not fit, or a query has no answer.
    """
    columns = pool.columns
    every = np.asarray(similarity, dtype=np.float64)
    scores = every[:, columns]
    relevant = np.asarray(pool.image_text)[:, None] == np.asarray(pool.text)[columns][None, :]
    details: dict[str, Any] = {"pool": len(pool.ids), "distinct_reports": len(columns)}
    ranks = first_relevant_rank(scores, relevant)
    images = _hits("retrieval.image_to_text", ranks)
    texts = _hits("retrieval.text_to_image", first_relevant_rank(scores.T, relevant.T))
    metrics = {f"retrieval.image_to_text_r{k}.baseline": chance_recall(relevant, k) for k in KS}
    metrics |= {f"retrieval.text_to_image_r{k}.baseline": chance_recall(relevant.T, k) for k in KS}
    if top and match is not None:
        forth = rerank(scores, top, lambda query, candidate: match(query, columns[candidate]))
        back = rerank(scores.T, top, lambda query, candidate: match(candidate, columns[query]))
        images |= _hits("retrieval.reranked_image_to_text", first_relevant_rank(forth, relevant))
        texts |= _hits("retrieval.reranked_text_to_image", first_relevant_rank(back, relevant.T))
        details["reranked"] = min(top, *scores.shape)
    if pool.classes is not None:
        by_class, chance = _precisions(every, pool, details)
        images |= by_class
        metrics |= chance
    first = [int(np.argmax(column)) for column in relevant.T]  # the first image of a text gives it its name
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
    """Rows whose columns are figures by their means."""
    return Samples(unit, list(ids), list(patients), columns, {name: mean_of(name) for name in columns})


def _precisions(
    similarity: np.ndarray, pool: Pool, details: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """P@k columns (NaN for images without a class) and their chance values; the table by class goes to details.

    Candidates are the texts (images) of the classed images, one each: a text that two of them share counts
    twice, as in the protocol, where every study brings its report.
    """
    assert pool.classes is not None
    classes = np.asarray(pool.classes, dtype=str)
    rows = np.flatnonzero(classes != NO_CLASS)
    own = classes[rows]
    names = sorted(set(own.tolist()))
    details["classes"] = {name: int((own == name).sum()) for name in names}
    if len(names) < 2:
        return {}, {}
    place = {identity: column for column, identity in reversed(list(enumerate(np.asarray(pool.text).tolist())))}
    own_column = [place[identity] for identity in np.asarray(pool.image_text)[rows].tolist()]
    table = similarity[np.ix_(rows, own_column)]  # (classed images, their texts)
    share = float(np.mean([(own == name).mean() for name in own]))
    columns: dict[str, np.ndarray] = {}
    chance: dict[str, float] = {}
    details["precision_by_class"] = {name: {} for name in names}
    for way, scores in (("image_to_text", table), ("text_to_image", table.T)):
        for k in PRECISION_KS:
            if k > len(rows):
                continue
            values = np.full(len(classes), np.nan)
            values[rows] = precision_at_k(scores, own, own, k)
            figure = f"retrieval.{way}_p{k}"
            columns[figure], chance[f"{figure}.baseline"] = values, share
            for name in names:
                details["precision_by_class"][name][f"{way} P@{k}"] = float(values[classes == name].mean())
    return columns, chance


def exclusive_class(labels: Sequence[dict[str, int]], findings: Sequence[str]) -> np.ndarray:
    """The one finding of a set that each study states, "" where it states none, several, or doubts one."""
    rows = []
    for row in labels:
        stated = [name for name in findings if row.get(name) == 1]
        doubted = any(row.get(name) == -1 for name in findings)
        rows.append(stated[0] if len(stated) == 1 and not doubted else NO_CLASS)
    return np.array(rows, dtype=str)
