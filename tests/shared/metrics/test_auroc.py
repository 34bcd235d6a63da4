"""AUROC against counting pairs and scikit-learn, its gaps, and the bootstrap by patient."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medunifier.shared.metrics.auroc import auroc, auroc_per_finding, macro_auroc, macro_auroc_interval, truth_matrix
from medunifier.shared.metrics.bootstrap import bootstrap_interval
from medunifier.shared.metrics.roc import POINTS, roc_per_finding, roc_points
from tests.seeds import for_seeds


@for_seeds(200)
def test_equals_the_fraction_of_pairs_in_the_right_order(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0.0, 1.0, np.nan], size=30, p=[0.5, 0.4, 0.1])
    scores = rng.integers(0, 8, size=30) / 7
    pairs = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i in np.flatnonzero(truth == 1)
        for j in np.flatnonzero(truth == 0)
    ]
    counts = ~np.isnan(truth)
    assert auroc(truth, scores) == pytest.approx(np.mean(pairs))
    assert auroc(truth, scores) == pytest.approx(roc_auc_score(truth[counts], scores[counts]))


def test_a_finding_with_one_class_has_no_figure_and_does_not_move_the_mean():
    truth = np.array([[1, 0], [0, 0], [1, 0]], dtype=float)
    scores = np.array([[0.9, 0.1], [0.2, 0.4], [0.8, 0.3]])
    assert auroc_per_finding(truth, scores, ("Edema", "Fracture")) == {"Edema": 1.0}
    assert macro_auroc(truth, scores) == 1.0
    assert np.isnan(macro_auroc(truth[:, 1:], scores[:, 1:]))


def test_uncertain_does_not_count_and_silence_is_absence():
    matrix = truth_matrix([{"Edema": -1}, {"Edema": 1}, {}, {"Edema": 0}], ("Edema",))[:, 0]
    assert np.isnan(matrix[0]) and matrix[1:].tolist() == [1, 0, 0]


def test_the_interval_resamples_patients_not_rows():
    # One patient holds all the variation: with few patients the interval must be wide.
    values = np.array([0.0] * 50 + [1.0] * 50)
    by_patient = bootstrap_interval(lambda rows: values[rows].mean(), ["a"] * 50 + ["b"] * 50)
    by_row = bootstrap_interval(lambda rows: values[rows].mean(), [str(i) for i in range(100)])
    assert by_patient == (0.0, 1.0)
    assert by_row[1] - by_row[0] < 0.3


def test_the_interval_covers_a_known_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        values = rng.normal(size=60)
        low, high = bootstrap_interval(lambda rows, v=values: v[rows].mean(), range(60), 200, seed=trial)
        covered += low <= 0 <= high
    assert 87 <= covered <= 100


def test_an_undefined_statistic_gives_no_interval():
    truth, scores = np.zeros((4, 1)), np.zeros((4, 1))
    assert np.isnan(macro_auroc_interval(truth, scores, list("abcd"))).all()
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap_interval(lambda rows: 0.0, [])


@for_seeds(200)
def test_the_area_under_the_plotted_curve_is_the_auroc(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0.0, 1.0, np.nan], size=40, p=[0.5, 0.4, 0.1])
    scores = rng.integers(0, 12, size=40) / 11
    false, true = np.array(roc_points(truth, scores)).T
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = ((false[1:] - false[:-1]) * (true[1:] + true[:-1]) / 2).sum()
    assert area == pytest.approx(auroc(truth, scores), abs=1e-4)


def test_a_long_curve_is_thinned_and_an_absent_class_has_none():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, size=(3000, 2)).astype(float)
    truth[:, 1] = 0
    scores = rng.normal(size=(3000, 2)) + truth
    curves = roc_per_finding(truth, scores, ("Edema", "Fracture"))
    assert list(curves) == ["Edema"] and len(curves["Edema"]) <= POINTS
    false, true = np.array(curves["Edema"]).T
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
