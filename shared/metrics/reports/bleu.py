"""BLEU-1 to BLEU-4 of a corpus, one reference a report, as report-generation papers give it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from medunifier.shared.metrics.reports.report_text import clean

ORDERS = 4


def bleu(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU without smoothing, over texts after :func:`medunifier.shared.metrics.reports.report_text.clean`.

    Clipped n-gram hits are summed over the corpus before the division, and the brevity penalty is the
    corpus' own (Papineni et al., 2002). sacrebleu computes the same (`tokenize="none"`,
    `smooth_method="none"`) but only one order a call, and 0 for all orders where the highest has no hit.

    Args:
        written, references: N texts each, in the same order. An empty text counts as no words.

    Returns:
        ``bleu1`` … ``bleu4``, in [0, 1]; 0 where an order has no hit.

    Raises:
        ValueError: if the two differ in length.
    """
    return bleu_of(*bleu_counts(written, references))


def bleu_counts(written: Sequence[str], references: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What BLEU is summed from, a row a report.

    Returns:
        (N, 4) clipped n-gram hits, (N, 4) n-grams written, (N, 2) words written and in the reference.

    Raises:
        ValueError: if the two differ in length.
    """
    if len(written) != len(references):
        raise ValueError(f"{len(written)} texts for {len(references)} references")
    hits, totals = np.zeros((len(written), ORDERS)), np.zeros((len(written), ORDERS))
    lengths = np.zeros((len(written), 2))
    for row, (text, reference) in enumerate(zip(written, references, strict=True)):
        words, truth = clean(text).split(), clean(reference).split()
        lengths[row] = len(words), len(truth)
        for n in range(1, ORDERS + 1):
            predicted, wanted = _ngrams(words, n), _ngrams(truth, n)
            hits[row, n - 1] = (predicted & wanted).total()
            totals[row, n - 1] = predicted.total()
    return hits, totals, lengths


def bleu_of(hits: np.ndarray, totals: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """BLEU of the corpus whose rows of counts these are."""
    hits, totals, lengths = hits.sum(axis=0), totals.sum(axis=0), lengths.sum(axis=0)
    penalty = float(np.exp(min(0.0, 1 - lengths[1] / lengths[0]))) if lengths[0] else 0.0
    precisions = np.divide(hits, totals, out=np.zeros(ORDERS), where=totals > 0)
    with np.errstate(divide="ignore"):
        means = np.exp(np.cumsum(np.log(precisions)) / np.arange(1, ORDERS + 1))
    return {f"bleu{n}": float(penalty * means[n - 1]) for n in range(1, ORDERS + 1)}


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))
