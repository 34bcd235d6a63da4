"""CIDEr-D: agreement of n-grams weighted by how rare they are among the references."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from medunifier.shared.metrics.reports.report_text import clean

ORDERS = 4
SIGMA = 6.0


def cider(written: Sequence[str], references: Sequence[str]) -> float:
    """Mean of :func:`cider_each`, from 0 to 10."""
    return float(cider_each(written, references).mean())


def cider_each(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """CIDEr-D of each report of a corpus with one reference a report (Vedantam et al., 2015).

    The inverse document frequency comes from the references themselves, as in pycocoevalcap, so a figure
    belongs to its test set: two sets cannot be compared. With one report no n-gram is rarer than another
    and the score is 0.

    Args:
        written, references: N texts each, in the same order.

    Returns:
        (N,) from 0 to 10.

    Raises:
        ValueError: if the two differ in length, or are empty.
    """
    if len(written) != len(references) or not references:
        raise ValueError(f"{len(written)} texts for {len(references)} references; at least one pair is needed")
    truth = [_counts(reference) for reference in references]
    documents: Counter[tuple[str, ...]] = Counter()
    for counts in truth:
        for order in counts:
            documents.update(order.keys())
    predicted = [_counts(text) for text in written]
    return np.array([_similarity(a, b, documents, len(references)) for a, b in zip(predicted, truth, strict=True)])


def _counts(text: str) -> list[Counter[tuple[str, ...]]]:
    words = clean(text).split()
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, ORDERS + 1)]


def _similarity(
    predicted: list[Counter[tuple[str, ...]]],
    wanted: list[Counter[tuple[str, ...]]],
    documents: Counter[tuple[str, ...]],
    corpus: int,
) -> float:
    # pycocoevalcap measures length in bigrams, not words; kept for parity.
    penalty = np.exp(-((predicted[1].total() - wanted[1].total()) ** 2) / (2 * SIGMA**2))
    cosines = []
    for a, b in zip(predicted, wanted, strict=True):
        x, y = _weighted(a, documents, corpus), _weighted(b, documents, corpus)
        norms = np.sqrt(sum(v * v for v in x.values())) * np.sqrt(sum(v * v for v in y.values()))
        # The written count is clipped at the reference's, so that repetition earns nothing (the D of CIDEr-D).
        dot = sum(min(value, y[gram]) * y[gram] for gram, value in x.items() if gram in y)
        cosines.append(dot / norms if norms else 0.0)
    return float(10 * penalty * np.mean(cosines))


def _weighted(
    counts: Counter[tuple[str, ...]], documents: Counter[tuple[str, ...]], corpus: int
) -> dict[tuple[str, ...], float]:
    return {gram: count * np.log(corpus / max(1, documents[gram])) for gram, count in counts.items()}
