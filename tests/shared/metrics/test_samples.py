"""Scores by sample: every kind of figure, the file they travel in, and the paired bootstrap."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from medunifier.shared.errors import UserError
from medunifier.shared.metrics.auroc import auroc, macro_auroc
from medunifier.shared.metrics.bootstrap import resamples
from medunifier.shared.metrics.reports.bleu import bleu, bleu_counts
from medunifier.shared.metrics.reports.clinical_f1 import clinical_f1, f1_counts
from medunifier.shared.metrics.samples import (
    Samples,
    Statistic,
    load_samples,
    mean_of,
    paired_difference,
    save_samples,
)

FINDINGS = ("Edema", "Fracture")


def scores(seed, n=40, shift=0.0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=n)
    return Samples(
        unit="study",
        ids=[f"s{i}" for i in range(n)],
        patients=[f"p{i // 2}" for i in range(n)],
        columns={"score": noise + shift},
        statistics={"task.score": mean_of("score")},
    )


def test_a_figure_over_rows_is_the_figure_of_these_rows():
    rng = np.random.default_rng(0)
    words = ["clear", "lungs", "no", "effusion", "edema"]
    texts = [[" ".join(rng.choice(words, size=6)) for _ in range(20)] for _ in range(2)]
    labels = [[{name: int(rng.integers(0, 2)) for name in FINDINGS} for _ in range(20)] for _ in range(2)]
    truth, score = rng.integers(0, 2, size=(20, 2)).astype(float), rng.random((20, 2))
    hits, totals, lengths = bleu_counts(*texts)
    both, stated, true = f1_counts(*labels, FINDINGS)
    f1, kinds = ("both", "predicted", "true"), ("hits", "totals", "lengths")
    samples = Samples(
        "study",
        [str(i) for i in range(20)],
        [str(i) for i in range(20)],
        {"hits": hits, "totals": totals, "lengths": lengths, "both": both, "predicted": stated, "true": true}
        | {"truth": truth, "score": score, "a": truth[:, 0], "b": score[:, 0], "hit": truth[:, 1]},
        {f"bleu{n}": Statistic(f"bleu{n}", kinds) for n in (1, 2, 3, 4)}
        | {"micro": Statistic("f1_micro", f1), "macro": Statistic("f1_macro", f1)}
        | {"auroc": Statistic("auroc", ("a", "b")), "macro_auroc": Statistic("macro_auroc", ("truth", "score"))}
        | {"paired": Statistic("paired_auroc", ("b", "hit")), "mean": mean_of("hit")},
    )
    for seed in range(20):
        rows = np.random.default_rng(seed).integers(0, 20, size=20)
        some = [[column[i] for i in rows] for column in (*texts, *labels)]
        expected = bleu(some[0], some[1])
        assert all(samples.value(name, rows) == pytest.approx(value) for name, value in expected.items())
        scored = clinical_f1(some[2], some[3], FINDINGS)
        assert samples.value("micro", rows) == pytest.approx(scored["micro"], nan_ok=True)
        assert samples.value("macro", rows) == pytest.approx(scored["macro"], nan_ok=True)
        assert samples.value("auroc", rows) == pytest.approx(auroc(truth[rows, 0], score[rows, 0]), nan_ok=True)
        assert samples.value("macro_auroc", rows) == pytest.approx(macro_auroc(truth[rows], score[rows]), nan_ok=True)
    wins = [(x > y) + 0.5 * (x == y) for x in score[:, 0] for y in truth[:, 1]]
    assert samples.values()["paired"] == pytest.approx(np.mean(wins))


def test_resamples_bring_all_rows_of_a_patient():
    patients = ["a", "b", "a", "c", "b", "a"]
    rows_of = {"a": [0, 2, 5], "b": [1, 4], "c": [3]}
    seen = set()
    for rows in resamples(patients, 50, seed=1):
        counts = {name: [int((rows == row).sum()) for row in of] for name, of in rows_of.items()}
        assert all(len(set(of)) == 1 for of in counts.values())
        assert sum(of[0] for of in counts.values()) == 3
        seen.add(tuple(of[0] for of in counts.values()))
    assert len(seen) > 5
    first = [rows.tolist() for rows in resamples(patients, 3, seed=1)]
    assert first == [rows.tolist() for rows in resamples(patients, 3, seed=1)]


def test_intervals_are_those_of_each_figure():
    low, high = scores(0, 200).intervals(300, 0)["task.score"]
    assert low < 0 < high and high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)


def test_a_small_constant_gain_is_found_though_the_intervals_overlap():
    a, b = scores(0, shift=0.1), scores(0)
    found = paired_difference(a, b, "task.score", 500, 0)
    assert [found["difference"], *found["interval"]] == pytest.approx([0.1] * 3)
    assert found["p"] == pytest.approx(2 / 501)
    intervals = [x.intervals(200, 0)["task.score"] for x in (a, b)]
    assert intervals[0][0] < intervals[1][1]
    same = paired_difference(a, a, "task.score", 200, 0)
    assert same["difference"] == 0 and same["interval"] == [0, 0] and same["p"] == 1


def test_p_is_about_that_of_the_paired_t_test():
    for seed in range(8):
        a, b = scores(seed, 100, 0.15), scores(seed + 100, 100)
        lone = [Samples(s.unit, s.ids, s.ids, s.columns, s.statistics) for s in (a, b)]
        expected = ttest_rel(a.columns["score"], b.columns["score"]).pvalue
        assert paired_difference(*lone, "task.score", 2000, 0)["p"] == pytest.approx(expected, abs=0.06), (
            f"seed {seed}"
        )


def test_other_rows_or_another_definition_are_refused():
    a, b = scores(0), scores(1)
    with pytest.raises(ValueError, match="same rows"):
        paired_difference(a, scores(1, 38), "task.score", 10, 0)
    other = Samples(b.unit, b.ids, b.patients, b.columns, {"task.score": Statistic("auroc", ("score", "score"))})
    with pytest.raises(ValueError, match="defined otherwise"):
        paired_difference(a, other, "task.score", 10, 0)


def test_the_file_gives_back_what_was_written_and_notices_another(tmp_path):
    samples = scores(0)
    record = save_samples(tmp_path / "x-samples.npz", {"task": samples, "other": scores(1)})
    assert record["groups"]["task"]["count"] == 40 and record["groups"]["task"]["patients"] == 20
    back = load_samples(tmp_path, record)
    assert back["task"].values() == samples.values() != back["other"].values()
    assert (back["task"].ids, back["task"].patients) == (samples.ids, samples.patients)
    save_samples(tmp_path / "x-samples.npz", {"task": scores(2)})
    with pytest.raises(UserError, match="another checksum"):
        load_samples(tmp_path, record)
    with pytest.raises(UserError, match="must lie beside"):
        load_samples(tmp_path / "elsewhere", record)
