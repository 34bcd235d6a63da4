"""Linear probe: how much of the findings lies ready in the frozen image embedding, by share of labels."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from data.observations import OBSERVATIONS
from shared.metrics.auroc import auroc_per_finding, truth_matrix
from shared.metrics.roc import roc_per_finding
from shared.metrics.samples import Samples, Statistic
from stage2_unified.evaluate.reports import TRAIN
from stage2_unified.evaluate.result import Judging, TaskResult
from stage2_unified.evaluate.studies import with_both_classes

SHARES = (1, 10, 100)
"""Per cent of the training studies whose labels are given."""


def judge_finetune(judging: Judging) -> TaskResult:
    """AUROC of a logistic regression a finding on frozen embeddings, with 1, 10 and 100 % of the labels.

    The subsets are nested and drawn with the seed. A finding of which a subset has one class only is
    scored at chance there: it cannot be learned, and leaving it out would flatter small subsets.
    """
    data, split = judging.data, judging.split
    studies = data.studies(split, judging.limit, with_text=False)
    train = data.studies(TRAIN, judging.train_limit, with_text=False)
    truth = truth_matrix(studies.labels, OBSERVATIONS)
    columns = with_both_classes(truth, OBSERVATIONS)
    findings, truth = [OBSERVATIONS[i] for i in columns], truth[:, columns]
    train_truth = truth_matrix(train.labels, findings)
    embed = judging.pipeline.embed_images
    x_train = embed(data.codes(TRAIN, train), train.views)
    x_test = embed(data.codes(split, studies), studies.views)
    centre, spread = x_train.mean(axis=0), x_train.std(axis=0) + 1e-6
    x_train, x_test = (x_train - centre) / spread, (x_test - centre) / spread

    order = np.random.default_rng(judging.seed).permutation(len(train))
    table, statistics, metrics = {"truth": truth}, {}, {}
    details: dict[str, dict] = {"per_finding": {}, "train_studies": {}}
    for share in SHARES:
        rows = order[: max(1, round(len(order) * share / 100))]
        scores = np.stack([_probe(x_train[rows], train_truth[rows, f], x_test) for f in range(len(findings))], axis=1)
        name = f"finetune.linear_auroc_{share}"
        table[f"score_{share}"] = scores
        statistics[name] = Statistic("macro_auroc", ("truth", f"score_{share}"))
        metrics[f"{name}.baseline"] = 0.5
        details["per_finding"][f"{share} %"] = auroc_per_finding(truth, scores, findings)
        details["train_studies"][f"{share} %"] = len(rows)
    details["roc"] = roc_per_finding(truth, table[f"score_{SHARES[-1]}"], findings)
    samples = Samples("study", studies.ids, studies.patients, table, statistics)
    protocol = {"findings": findings, "labels": studies.labels_digest, "train_studies": details["train_studies"]}
    return TaskResult(samples.values() | metrics, details, {}, studies, {"finetune": samples}, protocol)


def _probe(x: np.ndarray, truth: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Scores of one finding on the test embeddings; all equal where the labels have one class."""
    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        return np.zeros(len(x_test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an AUROC asks for the order, not the last digit
        probe = LogisticRegression(C=0.1, max_iter=200).fit(x[known], truth[known])
    return probe.decision_function(x_test)
