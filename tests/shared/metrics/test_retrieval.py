"""Recall at k against a loop that follows the definition word by word, chance against a simulation."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from medunifier.shared.metrics.retrieval import (
    chance_recall,
    first_relevant_rank,
    precision_at_k,
    recall_at_k,
    rerank,
)
from tests.seeds import for_seeds


def by_hand(similarity, image_text, text, k):
    """The definition, one query at a time, over distinct texts; ties count against the answer."""
    columns = [j for j, t in enumerate(text) if t not in text[:j]]
    i2t = []
    for i, mine in enumerate(image_text):
        better = sum(
            1
            for j in columns
            if text[j] != mine and similarity[i][j] >= max(similarity[i][c] for c in columns if text[c] == mine)
        )
        i2t.append(better < k)
    t2i = []
    for j in columns:
        best = max(similarity[i][j] for i, mine in enumerate(image_text) if mine == text[j])
        better = sum(1 for i, mine in enumerate(image_text) if mine != text[j] and similarity[i][j] >= best)
        t2i.append(better < k)
    return sum(i2t) / len(i2t), sum(t2i) / len(t2i)


@for_seeds(200)
def test_equals_the_definition_with_ties_and_shared_texts(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 25))
    ids = rng.integers(0, max(1, n // 2) + 1, size=n).tolist()
    rows = rng.integers(0, 6, size=(n, max(ids) + 1)) / 5.0  # few values: many ties
    similarity = rows[:, ids]  # identical texts have identical embeddings
    got = recall_at_k(similarity, ids, ids)
    for k in (1, 5, 10):
        i2t, t2i = by_hand(similarity.tolist(), ids, ids, k)
        assert got[f"image_to_text_r{k}"] == pytest.approx(i2t)
        assert got[f"text_to_image_r{k}"] == pytest.approx(t2i)


def test_chance_equals_the_mean_of_random_scores():
    rng = np.random.default_rng(0)
    ids = [0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    samples = []
    for _ in range(400):
        by_text = rng.random((len(ids), 13))
        samples.append(recall_at_k(by_text[:, ids], ids, ids))
    for way in ("image_to_text_r5", "text_to_image_r5"):
        mean = np.mean([sample[way] for sample in samples])
        assert mean == pytest.approx(samples[0][f"{way}.baseline"], abs=0.02)


def test_a_constant_score_is_0_and_an_oracle_1():
    ids = list(range(30))
    assert recall_at_k(np.ones((30, 30)), ids, ids)["image_to_text_r10"] == 0
    assert recall_at_k(np.eye(30), ids, ids)["text_to_image_r1"] == 1


def test_one_image_is_found_at_once_and_by_chance_too():
    assert recall_at_k(np.array([[0.3]]), [7], [7])["image_to_text_r1.baseline"] == 1


def test_a_query_without_an_answer_and_a_score_that_is_no_number_are_refused():
    with pytest.raises(ValueError, match="query 1"):
        first_relevant_rank(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="not finite"):
        recall_at_k(np.array([[np.nan, 0.0], [0.0, 1.0]]), [0, 1], [0, 1])
    with pytest.raises(ValueError, match="identities"):
        recall_at_k(np.zeros((2, 3)), [0, 1], [0, 1])


@for_seeds(200)
def test_chance_is_the_hypergeometric_one(seed):
    rng = np.random.default_rng(seed)
    relevant = rng.random((rng.integers(1, 6), rng.integers(2, 12))) < 0.4
    relevant[:, 0] = True
    k = int(rng.integers(1, relevant.shape[1] + 1))
    misses = [hypergeom.pmf(0, relevant.shape[1], row.sum(), k) for row in relevant]
    assert chance_recall(relevant, k) == pytest.approx(1 - np.mean(misses))


def test_chance_with_k_beyond_the_candidates_is_one():
    assert chance_recall(np.eye(4, dtype=bool), 10) == 1


@for_seeds(200)
def test_precision_equals_the_definition_with_ties(seed):
    rng = np.random.default_rng(seed)
    queries, candidates = rng.integers(0, 3, size=rng.integers(1, 8)), rng.integers(0, 3, size=rng.integers(2, 12))
    scores = rng.integers(0, 4, size=(len(queries), len(candidates))) / 3
    k = int(rng.integers(1, len(candidates) + 1))
    got = precision_at_k(scores, queries, candidates, k)
    for i, mine in enumerate(queries):
        rows = sorted((-scores[i, j], candidates[j] == mine) for j in range(len(candidates)))
        assert got[i] == pytest.approx(sum(right for _, right in rows[:k]) / k)


def test_precision_of_an_oracle_of_chance_and_of_an_absent_class():
    classes = np.repeat(np.arange(5), 200)
    oracle = (classes[:, None] == classes[None, :]).astype(float)
    assert precision_at_k(oracle, classes, classes, 100).min() == 1
    random = np.random.default_rng(0).random((1000, 1000))
    assert precision_at_k(random, classes, classes, 100).mean() == pytest.approx(0.2, abs=0.01)
    assert precision_at_k(oracle[:1, 200:], classes[:1], classes[200:], 10)[0] == 0
    with pytest.raises(ValueError, match="P@9 of scores"):
        precision_at_k(np.zeros((1, 3)), classes[:1], classes[:3], 9)


@for_seeds(200)
def test_reranking_equals_sorting_by_hand(seed):
    rng = np.random.default_rng(seed)
    queries, candidates, top = int(rng.integers(1, 6)), int(rng.integers(1, 9)), int(rng.integers(1, 11))
    scores, second = rng.random((queries, candidates)), rng.integers(0, 3, size=(queries, candidates)) / 2
    calls = []

    def match(q, c):
        calls.append(len(q))
        return second[q, c]

    got = np.argsort(-rerank(scores, top, match), axis=1, kind="stable")
    for i in range(queries):
        order = sorted(range(candidates), key=lambda j, i=i: -scores[i, j])
        head = sorted(order[:top], key=lambda j, i=i: -second[i, j])  # stable: ties keep the first order
        assert got[i].tolist() == head + order[top:]
    assert calls == [queries * min(top, candidates)]


def test_reranking_by_an_oracle_finds_what_is_among_the_first():
    rng = np.random.default_rng(0)
    truth = np.eye(40)
    scores = truth + rng.normal(size=truth.shape)
    ids = list(range(40))
    before = recall_at_k(scores, ids, ids)
    after = recall_at_k(rerank(scores, 10, lambda q, c: truth[q, c]), ids, ids)
    assert after["image_to_text_r1"] == before["image_to_text_r10"] > before["image_to_text_r1"]
