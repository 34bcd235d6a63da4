"""Word metrics: BLEU and CIDEr against pycocoevalcap, BLEU against sacrebleu too, ROUGE-L against its definition."""

import random

import pytest

from medunifier.shared.metrics.reports.bleu import bleu
from medunifier.shared.metrics.reports.cider import cider, cider_each
from medunifier.shared.metrics.reports.report_text import clean
from medunifier.shared.metrics.reports.rouge import rouge_l, rouge_l_each
from tests.seeds import for_seeds

WORDS = [
    "heart",
    "lungs",
    "clear",
    "pleural",
    "effusion",
    "right",
    "left",
    "small",
    "no",
    "is",
    "are",
    "the",
    "there",
]


def corpus(seed, reports):
    """References of 5 to 30 words, and the same with a fifth of their words lost."""
    rng = random.Random(seed)
    truth = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 30))) + "." for _ in range(reports)]
    written = [" ".join(w for w in text.rstrip(".").split() if rng.random() < 0.8) + "." for text in truth]
    return written, truth


@for_seeds(72)
def test_pycocoevalcap_gives_the_same_bleu_and_cider(seed):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    written, truth = corpus(seed, 2 + seed % 9)
    texts = [{i: [clean(text)] for i, text in enumerate(side)} for side in (truth, written)]
    # Theirs adds 1e-15 to hits and 1e-9 to totals, so that an order without a hit is not quite 0.
    expected = Bleu(4).compute_score(*texts, verbose=0)[0]
    assert list(bleu(written, truth).values()) == pytest.approx(expected, abs=2e-4)
    total, each = Cider().compute_score(*texts)
    assert cider(written, truth) == pytest.approx(total)
    assert cider_each(written, truth) == pytest.approx(each)


@for_seeds(10)
def test_bleu_equals_sacrebleu(seed):
    sacrebleu = pytest.importorskip("sacrebleu")
    written, truth = corpus(seed, 20)
    got = bleu(written, truth)
    for order in (1, 2, 3, 4):
        metric = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        expected = metric.corpus_score([clean(t) for t in written], [[clean(t) for t in truth]]).score / 100
        assert got[f"bleu{order}"] == pytest.approx(expected)


def longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # The library itself computes ours, so the reference is the definition, on 200 reports.
    written, truth = corpus(3, 200)
    scores = []
    for a, b in zip(written, truth, strict=True):
        x, y = ([w for w in clean(text).split() if w != "."] for text in (a, b))
        scores.append(2 * longest_common(x, y) / (len(x) + len(y)))
    assert rouge_l_each(written, truth) == pytest.approx(scores)
    assert rouge_l(written, truth) == pytest.approx(sum(scores) / 200)


def test_the_truth_is_at_the_ceiling():
    _, truth = corpus(1, 30)
    assert bleu(truth, truth)["bleu4"] == rouge_l(truth, truth) == 1
    assert cider(truth, truth) == pytest.approx(10)


def test_empty_reports_score_nothing_and_do_not_fail():
    assert bleu(["", ""], ["heart is large.", ""]) == {f"bleu{n}": 0 for n in (1, 2, 3, 4)}
    assert rouge_l([""], ["heart is large."]) == 0
    assert cider(["", "x"], ["heart is large.", "clear."]) == 0


def test_unequal_lengths_are_refused():
    for metric in (bleu, rouge_l, cider):
        with pytest.raises(ValueError, match="1 texts for 2"):
            metric(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("The heart is LARGE.", "the heart is large ."),
        ("Heart is normal.\nNo effusion.", "heart is normal . no effusion ."),
        ("1. No effusion. 2. Follow-up in ___ weeks.", "no effusion . follow-up in weeks ."),
        ("Heart/lungs: (normal)...  Clear", "heartlungs normal . clear ."),
        ("A 1.5 cm nodule, right?", "a 15 cm nodule right ."),
        ("..", ""),
        ("", ""),
    ],
)
def test_clean_follows_r2gen(raw, cleaned):
    assert clean(raw) == cleaned
