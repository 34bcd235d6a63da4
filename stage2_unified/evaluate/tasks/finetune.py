"""Fine-tuning with a percentage of the labels: linear probe, full fine-tuning, and training from scratch."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.metrics.auroc import auroc_per_finding, truth_matrix
from medunifier.shared.metrics.roc import roc_per_finding
from medunifier.shared.metrics.samples import Samples, Statistic, mean_of
from medunifier.stage2_unified.evaluate.classifiers.heads import FindingHead, seeded, train_head
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import Studies, with_both_classes
from medunifier.stage2_unified.evaluate.tasks.reports import TRAIN
from medunifier.stage2_unified.evaluate.tasks.segmentation import evaluate_segmentation
from medunifier.stage2_unified.inference.prompts import findings_of

LINEAR, FULL, SCRATCH = "linear", "full", "scratch"

# How CheXpert papers (Irvin et al., 2019, and those that fine-tune on it) map uncertain labels.
UNCERTAIN = {"Atelectasis": 1, "Edema": 1, "Pleural Effusion": 1, "Cardiomegaly": 0, "Consolidation": 0}

Scores = dict[tuple[str, int], np.ndarray]
"""(method, percentage of the labels) -> (N, F) logits; the decision threshold is 0."""


def evaluate_finetune(context: EvaluationContext) -> TaskResult:
    """Return AUROC and accuracy with 1, 10 and 100 % of the labels, and Dice where the data have masks.

    ``finetune.linear_…``: logistic regression per finding on the frozen embeddings. ``finetune.full_…``: all weights,
    with a linear head on all findings; ``finetune.scratch_…``: the same architecture from random initialisation by
    the same recipe; ``finetune.gain_…``: AUROC of full minus scratch. Masks: :func:`evaluate_segmentation`.

    The subsets are nested and sampled with the seed. The probe scores a finding at chance if the subset has one
    class of it only, since leaving it out would favour small subsets. Nothing is selected on the test set: the
    weights after the last step are evaluated, at a threshold of probability 0.5.
    """
    data, split, options = context.data, context.split, context.finetune
    studies = data.studies(split, context.limit, with_text=False)
    train = data.studies(TRAIN, context.train_limit, with_text=False)
    candidates = OBSERVATIONS if context.label_set == "all" else findings_of(context.label_set)
    truth = truth_matrix(studies.labels, candidates)
    columns = with_both_classes(truth, candidates)
    findings, truth = [candidates[i] for i in columns], truth[:, columns]
    labels = train.labels if options.uncertain == "ignore" else _without_uncertain(train.labels)
    train_truth = truth_matrix(labels, findings)
    order = np.random.default_rng(context.seed).permutation(len(train))
    subsets = {percent: order[: max(1, round(len(order) * percent / 100))] for percent in options.shares}

    scores = _linear(context, train, studies, train_truth, subsets)
    if options.steps:
        scores |= _full(context, train, studies, train_truth, subsets)
    samples, baselines = _samples(studies, truth, scores)
    best = max(scores, key=lambda key: (key[0] == FULL, key[1]))
    details: dict[str, Any] = {
        "per_finding": {
            f"{method}, {percent} %": auroc_per_finding(truth, values, findings)
            for (method, percent), values in scores.items()
        },
        "train_studies": {f"{percent} %": len(rows) for percent, rows in subsets.items()},
        "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
        "roc_of": f"{best[0]}, {best[1]} %",
        "roc": roc_per_finding(truth, scores[best], findings),
        "recipe": vars(options) | {"optimizer": "AdamW", "evaluated": "after the last step, at threshold 0.5"},
    }
    protocol: dict[str, Any] = {
        "findings": findings,
        "labels": studies.labels_digest,
        "train_studies": details["train_studies"],
        "uncertain": options.uncertain,
    }
    result = TaskResult(samples.values() | baselines, details, {}, studies, {"finetune": samples}, protocol)
    if options.steps and data.has_images:
        evaluate_segmentation(context, train, studies, subsets, result)
    return result


def _samples(studies: Studies, truth: np.ndarray, scores: Scores) -> tuple[Samples, dict[str, float]]:
    """Return the scores by study with the metrics computed from them, and the baselines."""
    table: dict[str, np.ndarray] = {"truth": truth}
    statistics: dict[str, Statistic] = {}
    baselines: dict[str, float] = {}
    present = np.nanmean(truth, axis=0)
    for (method, percent), values in scores.items():
        score, correct = f"score_{method}_{percent}", f"right_{method}_{percent}"
        table |= {score: values, correct: np.where(np.isnan(truth), np.nan, (values > 0) == (truth == 1))}
        statistics[f"finetune.{method}_auroc_{percent}"] = Statistic("macro_auroc", ("truth", score))
        statistics[f"finetune.{method}_accuracy_{percent}"] = mean_of(correct)
        baselines[f"finetune.{method}_auroc_{percent}.baseline"] = 0.5
        baselines[f"finetune.{method}_accuracy_{percent}.baseline"] = float(np.maximum(present, 1 - present).mean())
        if method == SCRATCH:
            statistics[f"finetune.gain_{percent}"] = Statistic(
                "macro_auroc_gain", ("truth", f"score_full_{percent}", score)
            )
            baselines[f"finetune.gain_{percent}.baseline"] = 0.0
    return Samples("study", studies.ids, studies.patients, table, statistics), baselines


def _without_uncertain(labels: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """Map uncertain labels by :data:`UNCERTAIN`."""
    return [
        {name: UNCERTAIN.get(name, -1) if value == -1 else value for name, value in row.items()} for row in labels
    ]


def _linear(
    context: EvaluationContext, train: Studies, studies: Studies, truth: np.ndarray, subsets: Mapping[int, np.ndarray]
) -> Scores:
    data, embed = context.data, context.pipeline.embed_images
    x_train = embed(data.codes(TRAIN, train), train.views)
    x_test = embed(data.codes(context.split, studies), studies.views)
    centre, spread = x_train.mean(axis=0), x_train.std(axis=0) + 1e-6
    x_train, x_test = (x_train - centre) / spread, (x_test - centre) / spread
    return {
        (LINEAR, percent): np.stack(
            [_probe(x_train[rows], truth[rows, f], x_test) for f in range(truth.shape[1])], axis=1
        )
        for percent, rows in subsets.items()
    }


def _probe(x: np.ndarray, truth: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Return the scores of one finding on the test embeddings; constant where the labels have one class."""
    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        return np.full(len(x_test), 2 * np.nanmean(truth) - 1 if known.any() else 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an AUROC depends on the order of the scores only
        probe = LogisticRegression(C=0.1, max_iter=200).fit(x[known], truth[known])
    return probe.decision_function(x_test)


def _full(
    context: EvaluationContext, train: Studies, studies: Studies, truth: np.ndarray, subsets: Mapping[int, np.ndarray]
) -> Scores:
    data, options, seed = context.data, context.finetune, context.seed
    codes, test_codes = data.codes(TRAIN, train), data.codes(context.split, studies)
    targets = torch.from_numpy(truth).float()
    scores: Scores = {}
    for method in (FULL, SCRATCH) if options.scratch else (FULL,):
        for percent, rows in subsets.items():
            backbone = context.pipeline.image_backbone(None if method == FULL else seed)
            head = seeded(partial(FindingHead, backbone.width, truth.shape[1]), seed)
            head.to(next(backbone.parameters()).device)
            inputs = backbone.inputs(codes[rows], [train.views[i] for i in rows])
            title = f"fine-tuning ({method}, {percent} %)"
            apply = train_head(backbone, head, inputs, targets[rows], options, seed, False, title)
            scores[method, percent] = apply(backbone.inputs(test_codes, studies.views))
    return scores
