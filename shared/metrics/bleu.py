"""BLEU-1 to BLEU-4 of a corpus, one reference a report, as report-generation papers give it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from shared.metrics.report_text import clean

ORDERS = 4


def bleu(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU without smoothing, over texts after :func:`shared.metrics.report_text.clean`.

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
    if len(written) != len(references):
        raise ValueError(f"{len(written)} texts for {len(references)} references")
    hits, totals = np.zeros(ORDERS), np.zeros(ORDERS)
    lengths = np.zeros(2)
    for text, reference in zip(written, references, strict=True):
        words, truth = clean(text).split(), clean(reference).split()
        lengths += len(words), len(truth)
        for n in range(1, ORDERS + 1):
            said, wanted = _ngrams(words, n), _ngrams(truth, n)
            hits[n - 1] += (said & wanted).total()
            totals[n - 1] += said.total()
    penalty = float(np.exp(min(0.0, 1 - lengths[1] / lengths[0]))) if lengths[0] else 0.0
    precisions = np.divide(hits, totals, out=np.zeros(ORDERS), where=totals > 0)
    with np.errstate(divide="ignore"):
        means = np.exp(np.cumsum(np.log(precisions)) / np.arange(1, ORDERS + 1))
    return {f"bleu{n}": float(penalty * means[n - 1]) for n in range(1, ORDERS + 1)}


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))
