"""Fine-tuning by share of labels: a linear probe, the whole network, and the same network from fresh weights."""

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
from medunifier.stage2_unified.evaluate.classifiers.heads import FindingHead, fresh, train_head
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.subsets.studies import Studies, with_both_classes
from medunifier.stage2_unified.evaluate.tasks.reports import TRAIN
from medunifier.stage2_unified.evaluate.tasks.segmentation import evaluate_segmentation
from medunifier.stage2_unified.inference.prompts import findings_of

LINEAR, FULL, SCRATCH = "linear", "full", "scratch"

# CheXpert's papers (Irvin et al., 2019, and those that fine-tune on it) read doubt so, finding by finding.
DOUBT = {"Atelectasis": 1, "Edema": 1, "Pleural Effusion": 1, "Cardiomegaly": 0, "Consolidation": 0}

Scores = dict[tuple[str, int], np.ndarray]
"""(way, share of the labels) -> (N, F) scores; 0 is even odds."""


def evaluate_finetune(judging: EvaluationContext) -> TaskResult:
    """AUROC and accuracy with 1, 10 and 100 % of the labels, and Dice where the data have masks.

    ``finetune.linear_…``: a logistic regression a finding on the frozen embeddings. ``finetune.full_…``: the network
    trained further with a linear head on all findings; ``finetune.scratch_…`` the same architecture from fresh
    weights by the same recipe, and ``finetune.gain_…`` by how much the former's AUROC is higher. Masks:
    :func:`evaluate_segmentation`.

    The subsets are nested and drawn with the seed. A finding of which a subset has one class only is scored at
    chance by the probe: it cannot be learned, and leaving it out would flatter small subsets. Nothing is chosen on
    the test: the weights after the last step are judged, and a decision is made at even odds.
    """
    data, split, options = judging.data, judging.split, judging.finetune
    studies = data.studies(split, judging.limit, with_text=False)
    train = data.studies(TRAIN, judging.train_limit, with_text=False)
    candidates = OBSERVATIONS if judging.label_set == "all" else findings_of(judging.label_set)
    truth = truth_matrix(studies.labels, candidates)
    columns = with_both_classes(truth, candidates)
    findings, truth = [candidates[i] for i in columns], truth[:, columns]
    labels = train.labels if options.uncertain == "ignore" else _settled(train.labels)
    train_truth = truth_matrix(labels, findings)
    order = np.random.default_rng(judging.seed).permutation(len(train))
    subsets = {share: order[: max(1, round(len(order) * share / 100))] for share in options.shares}

    scores = _linear(judging, train, studies, train_truth, subsets)
    if options.steps:
        scores |= _whole(judging, train, studies, train_truth, subsets)
    samples, baselines = _figures(studies, truth, scores)
    best = max(scores, key=lambda key: (key[0] == FULL, key[1]))
    details: dict[str, Any] = {
        "per_finding": {
            f"{way}, {share} %": auroc_per_finding(truth, values, findings) for (way, share), values in scores.items()
        },
        "train_studies": {f"{share} %": len(rows) for share, rows in subsets.items()},
        "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
        "roc_of": f"{best[0]}, {best[1]} %",
        "roc": roc_per_finding(truth, scores[best], findings),
        "recipe": vars(options) | {"optimizer": "AdamW", "judged": "after the last step, decided at even odds"},
    }
    protocol: dict[str, Any] = {
        "findings": findings,
        "labels": studies.labels_digest,
        "train_studies": details["train_studies"],
        "uncertain": options.uncertain,
    }
    result = TaskResult(samples.values() | baselines, details, {}, studies, {"finetune": samples}, protocol)
    if options.steps and data.has_images:
        evaluate_segmentation(judging, train, studies, subsets, result)
    return result


def _figures(studies: Studies, truth: np.ndarray, scores: Scores) -> tuple[Samples, dict[str, float]]:
    """The rows that the figures are made of, and the baselines."""
    table: dict[str, np.ndarray] = {"truth": truth}
    statistics: dict[str, Statistic] = {}
    baselines: dict[str, float] = {}
    present = np.nanmean(truth, axis=0)
    for (way, share), values in scores.items():
        score, right = f"score_{way}_{share}", f"right_{way}_{share}"
        table |= {score: values, right: np.where(np.isnan(truth), np.nan, (values > 0) == (truth == 1))}
        statistics[f"finetune.{way}_auroc_{share}"] = Statistic("macro_auroc", ("truth", score))
        statistics[f"finetune.{way}_accuracy_{share}"] = mean_of(right)
        baselines[f"finetune.{way}_auroc_{share}.baseline"] = 0.5
        baselines[f"finetune.{way}_accuracy_{share}.baseline"] = float(np.maximum(present, 1 - present).mean())
        if way == SCRATCH:
            statistics[f"finetune.gain_{share}"] = Statistic(
                "macro_auroc_gain", ("truth", f"score_full_{share}", score)
            )
            baselines[f"finetune.gain_{share}.baseline"] = 0.0
    return Samples("study", studies.ids, studies.patients, table, statistics), baselines


def _settled(labels: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """Labels with CheXpert's reading of doubt."""
    return [{name: DOUBT.get(name, -1) if value == -1 else value for name, value in row.items()} for row in labels]


def _linear(
    judging: EvaluationContext, train: Studies, studies: Studies, truth: np.ndarray, subsets: Mapping[int, np.ndarray]
) -> Scores:
    data, embed = judging.data, judging.pipeline.embed_images
    x_train = embed(data.codes(TRAIN, train), train.views)
    x_test = embed(data.codes(judging.split, studies), studies.views)
    centre, spread = x_train.mean(axis=0), x_train.std(axis=0) + 1e-6
    x_train, x_test = (x_train - centre) / spread, (x_test - centre) / spread
    return {
        (LINEAR, share): np.stack(
            [_probe(x_train[rows], truth[rows, f], x_test) for f in range(truth.shape[1])], axis=1
        )
        for share, rows in subsets.items()
    }


def _probe(x: np.ndarray, truth: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Scores of one finding on the test embeddings; all equal where the labels have one class."""
    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        return np.full(len(x_test), 2 * np.nanmean(truth) - 1 if known.any() else 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an AUROC asks for the order, not the last digit
        probe = LogisticRegression(C=0.1, max_iter=200).fit(x[known], truth[known])
    return probe.decision_function(x_test)


def _whole(
    judging: EvaluationContext, train: Studies, studies: Studies, truth: np.ndarray, subsets: Mapping[int, np.ndarray]
) -> Scores:
    data, options, seed = judging.data, judging.finetune, judging.seed
    codes, test_codes = data.codes(TRAIN, train), data.codes(judging.split, studies)
    targets = torch.from_numpy(truth).float()
    scores: Scores = {}
    for way in (FULL, SCRATCH) if options.scratch else (FULL,):
        for share, rows in subsets.items():
            backbone = judging.pipeline.image_backbone(None if way == FULL else seed)
            head = fresh(partial(FindingHead, backbone.width, truth.shape[1]), seed)
            head.to(next(backbone.parameters()).device)
            inputs = backbone.inputs(codes[rows], [train.views[i] for i in rows])
            title = f"fine-tuning ({way}, {share} %)"
            apply = train_head(backbone, head, inputs, targets[rows], options, seed, False, title)
            scores[way, share] = apply(backbone.inputs(test_codes, studies.views))
    return scores
