"""Image generation: does a radiograph drawn from a report show what the report says, and is it like real ones?"""

from typing import Any

import numpy as np

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.auroc import auroc_per_finding, macro_auroc, truth_matrix
from medunifier.shared.metrics.images.diversity import scales_of, similarity_within
from medunifier.shared.metrics.images.feature_nets import load_feature_net
from medunifier.shared.metrics.roc import roc_per_finding
from medunifier.shared.metrics.samples import Samples, Statistic
from medunifier.stage2_unified.evaluate.classifiers.classifier import INPUT, FindingClassifier
from medunifier.stage2_unified.evaluate.results.result import EvaluationContext, TaskResult
from medunifier.stage2_unified.evaluate.scores.images import Images, score_images
from medunifier.stage2_unified.evaluate.subsets.studies import Studies, with_both_classes
from medunifier.stage2_unified.evaluate.tasks.reports import TRAIN

EXAMPLES = 12
FAILURES = 4
LEAST_POSITIVES = 10
"""Training images of each class below which a finding cannot be learned, and judges nothing."""


def evaluate_synthesis(judging: EvaluationContext) -> TaskResult:
    """One radiograph drawn from each report, judged by a classifier that saw real training images alone.

    ``synthesis.label_auroc``: macro AUROC of the classifier on the drawn images against the labels of the
    reports. Beside it ``synthesis.label_auroc.real``, the same on the studies' real images: what the
    classifier can see at all, and so the ceiling; and ``….decoded``, on the real images through the
    tokenizer, which tells what its loss of detail costs. Chance is 0.5.

    The drawn images are compared with the studies' real ones by :func:`score_images`, and several images
    drawn for one prompt with each other: ``synthesis.ms_ssim_within``, beside that of as many real images
    of different studies. Its lower is more varied.

    Raises:
        UserError: for token shards (there are no real images), without a train split, or if no finding has
            both classes.
    """
    data, split = judging.data, judging.split
    if not data.has_images:
        raise UserError(f"{data.path} holds codes: synthesis is judged against real images, give the image shards")
    net = load_feature_net(judging.feature_net or "random", judging.feature_weights, judging.device)
    studies = data.studies(split, judging.limit)
    train = data.studies(TRAIN, judging.train_limit, with_text=False)
    train_truth, truth = (truth_matrix(draw.labels, OBSERVATIONS) for draw in (train, studies))
    learnable = with_both_classes(train_truth, OBSERVATIONS, LEAST_POSITIVES)
    judged = with_both_classes(truth[:, learnable], [OBSERVATIONS[i] for i in learnable])
    columns = [learnable[i] for i in judged]
    findings, truth = [OBSERVATIONS[i] for i in columns], truth[:, columns]

    train_images = data.images(TRAIN, train)
    classifier = FindingClassifier(train_images, train_truth[:, columns], judging.classifier_steps, judging.seed)
    drawn = _draw(judging, studies.reports, studies.views, judging.seed)
    real = data.images(split, studies)
    decoded = judging.pipeline.decode(data.codes(split, studies))
    seen = {"": classifier(drawn), ".real": classifier(real), ".decoded": classifier(decoded)}
    metrics = {f"synthesis.label_auroc{name}": macro_auroc(truth, values) for name, values in seen.items()}
    metrics["synthesis.label_auroc.baseline"] = 0.5
    metrics["synthesis.pixel_deviation"] = float(drawn.std(axis=0).mean())
    # Real images' own spread: drawn ones far below it are all alike, however right their labels.
    metrics["synthesis.pixel_deviation.baseline"] = float(real.std(axis=0).mean())
    labels = Samples(
        "study",
        studies.ids,
        studies.patients,
        {"truth": truth} | {f"score{name}": values for name, values in seen.items()},
        {f"synthesis.label_auroc{name}": Statistic("macro_auroc", ("truth", f"score{name}")) for name in seen},
    )
    scores = score_images(
        Images(drawn, studies.ids, studies.patients), Images(real, studies.ids, studies.patients), net, train_images
    )
    metrics |= scores.metrics
    details = scores.details | {
        "per_finding": {
            name or "generated": auroc_per_finding(truth, values, findings)
            for name, values in zip(("generated", "real", "decoded"), seen.values(), strict=True)
        },
        "roc": roc_per_finding(truth, seen[""], findings),
        "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
        "sampling": {name: getattr(judging, name) for name in ("guidance", "temperature", "top_k", "top_p", "seed")},
        "classifier": {"input": INPUT, "steps": judging.classifier_steps, "train_images": len(train)},
    }
    pictures = _variety(judging, studies, real, metrics, details)
    details["examples"] = _examples(pictures, studies, drawn, real, list(range(min(EXAMPLES, len(studies)))))
    details["failures"] = _examples(pictures, studies, drawn, real, _least_like_their_labels(truth, seen[""]))
    details["nearest_pairs"] = []
    for i, j, distance in scores.copies:
        names = f"synthesis-generated-{i}", f"synthesis-train-{j}"
        pictures |= {names[0]: drawn[i], names[1]: train_images[j]}
        details["nearest_pairs"].append({"generated": names[0], "train": names[1], "distance": distance})
    protocol = {
        "labels": studies.labels_digest,
        "findings": findings,
        "feature_net": scores.details["feature_net"],
        "image_size": list(real.shape[1:]),
        "images": scores.details["images"],
        "classifier": details["classifier"] | {"seed": judging.seed},
    }
    samples = {"synthesis-labels": labels} | scores.samples
    return TaskResult(metrics, details, pictures, studies, samples, protocol)


def _draw(judging: EvaluationContext, reports: list[dict[str, str]], views: list[str], seed: int) -> np.ndarray:
    """(N, H, W) floats in [0, 1]."""
    return judging.pipeline.decode(
        judging.pipeline.draw(
            reports,
            views,
            seed=seed,
            guidance=judging.guidance,
            temperature=judging.temperature,
            top_k=judging.top_k,
            top_p=judging.top_p,
        )
    )


def _variety(
    judging: EvaluationContext, studies: Studies, real: np.ndarray, metrics: dict[str, float], details: dict[str, Any]
) -> dict[str, np.ndarray]:
    """MS-SSIM between the images of a prompt; returns those of the first prompts, for the page."""
    prompts, count = min(judging.variety_prompts, len(studies)), judging.variety_images
    if not prompts or min(real.shape[1:]) < 11:
        return {}
    reports = [report for report in studies.reports[:prompts] for _ in range(count)]
    views = [view for view in studies.views[:prompts] for _ in range(count)]
    # Other seeds than those of the judged images, so that these are further draws.
    drawn = _draw(judging, reports, views, judging.seed + len(studies)).reshape(prompts, count, *real.shape[1:])
    metrics["synthesis.ms_ssim_within"] = float(np.mean([similarity_within(group) for group in drawn]))
    others = real[np.random.default_rng(judging.seed).permutation(len(real))[: prompts * count]]
    groups = [others[i : i + count] for i in range(0, len(others) - 1, count)]
    metrics["synthesis.ms_ssim_within.baseline"] = float(
        np.mean([similarity_within(group) for group in groups if len(group) > 1])
    )
    details["variety"] = {
        "prompts": prompts,
        "images": count,
        "scales": scales_of(min(real.shape[1:])),
        "baseline": "real images of different studies",
        "examples": [
            {
                "report": studies.texts[i],
                "generated": [f"synthesis-generated-again-{i}-{j}" for j in range(count)],
            }
            for i in range(min(3, prompts))
        ],
    }
    return {f"synthesis-generated-again-{i}-{j}": drawn[i, j] for i in range(min(3, prompts)) for j in range(count)}


def _least_like_their_labels(truth: np.ndarray, scores: np.ndarray) -> list[int]:
    """Studies whose labels the classifier finds least likely on the drawn image, worst first."""
    odds = np.clip(scores, -30, 30)
    loss = np.where(truth == 1, np.logaddexp(0, -odds), np.logaddexp(0, odds))
    return [int(i) for i in np.argsort(-np.where(np.isnan(truth), 0, loss).mean(axis=1), kind="stable")[:FAILURES]]


def _examples(
    pictures: dict[str, np.ndarray], studies: Studies, drawn: np.ndarray, real: np.ndarray, numbers: list[int]
) -> list[dict[str, str]]:
    """Drawn beside real, and what was asked for; adds their pictures."""
    rows = []
    for i in numbers:
        names = f"synthesis-generated-{i}", f"synthesis-real-{i}"
        pictures |= {names[0]: drawn[i], names[1]: real[i]}
        rows.append({"report": studies.texts[i], "generated": names[0], "real": names[1]})
    return rows
