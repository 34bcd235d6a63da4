"""Clinical F1 against scikit-learn, by computed flips, and the constant floor against trying every set."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from medunifier.shared.metrics.reports.clinical_f1 import best_constant, clinical_f1, stated
from tests.seeds import for_seeds

FINDINGS = ("Edema", "Fracture", "Pneumonia", "Pneumothorax", "No Finding")


def sample_labels(rng, n):
    return [
        {name: int(rng.choice([1, 0, -1], p=[0.5, 0.3, 0.2])) for name in FINDINGS if rng.random() < 0.7}
        for _ in range(n)
    ]


@pytest.mark.parametrize("uncertain", ["positive", "negative"])
@for_seeds(40)
def test_equals_scikit_learn(seed, uncertain):
    rng = np.random.default_rng(seed)
    predicted, truth = sample_labels(rng, 40), sample_labels(rng, 40)
    p = np.array([[{1: 1, -1: uncertain == "positive"}.get(r.get(f), 0) for f in FINDINGS] for r in predicted])
    t = np.array([[{1: 1, -1: uncertain == "positive"}.get(r.get(f), 0) for f in FINDINGS] for r in truth])
    got = clinical_f1(predicted, truth, FINDINGS, uncertain)
    assert got["micro"] == pytest.approx(f1_score(t, p, average="micro"))
    assert got["macro"] == pytest.approx(f1_score(t, p, average="macro"))
    precision, recall, f1, support = precision_recall_fscore_support(t, p, zero_division=0)
    for i, name in enumerate(FINDINGS):
        row = got["per_finding"][name]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[i], recall[i], f1[i]))
        assert row["support"] == support[i]


@pytest.mark.parametrize("flipped", [0, 1, 7, 20, 50])
def test_flipped_findings_move_micro_f1_by_the_computed_amount(flipped):
    # 50 studies, each with exactly one finding of two; a flip makes a hit into one miss and one false alarm.
    truth = [{"Edema": i % 2, "Fracture": 1 - i % 2} for i in range(50)]
    predicted = [
        {name: 1 - value if i < flipped else value for name, value in row.items()} for i, row in enumerate(truth)
    ]
    assert clinical_f1(predicted, truth, ("Edema", "Fracture"))["micro"] == pytest.approx((50 - flipped) / 50)


def test_an_oracle_is_at_the_ceiling_and_an_absent_class_does_not_pull_it_down():
    truth = sample_labels(np.random.default_rng(0), 60)
    got = clinical_f1(truth, truth, (*FINDINGS, "Never Stated"))
    assert got["micro"] == got["macro"] == 1
    assert got["findings_scored"] == len(FINDINGS)
    assert got["per_finding"]["Never Stated"] == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_a_finding_only_ever_stated_wrongly_counts_zero():
    assert clinical_f1([{"Edema": 1}], [{}], ("Edema",))["macro"] == 0


def test_without_any_statement_f1_is_undefined():
    got = clinical_f1([{}], [{"Edema": 0}], ("Edema",))
    assert np.isnan(got["micro"]) and np.isnan(got["macro"])


def test_the_two_rules_differ_where_doubt_is():
    truth, predicted = [{"Edema": -1}], [{"Edema": 1}]
    assert clinical_f1(predicted, truth, ("Edema",), "positive")["micro"] == 1
    assert clinical_f1(predicted, truth, ("Edema",), "negative")["micro"] == 0


@for_seeds(10)
def test_the_constant_is_the_best_of_all_sets(seed):
    train = sample_labels(np.random.default_rng(seed), 15)
    subsets = [s for size in range(1, len(FINDINGS) + 1) for s in combinations(FINDINGS, size)]

    def score(chosen):
        return clinical_f1([dict.fromkeys(chosen, 1)] * len(train), train, FINDINGS)["micro"]

    assert score(tuple(best_constant(train, FINDINGS))) == pytest.approx(max(score(s) for s in subsets))


def test_unequal_lengths_and_no_training_labels_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2"):
        clinical_f1([{}], [{}, {}], FINDINGS)
    with pytest.raises(ValueError, match="training labels"):
        best_constant([], FINDINGS)


def test_no_studies_keep_their_columns():
    assert stated([], FINDINGS, "positive").shape == (0, len(FINDINGS))
