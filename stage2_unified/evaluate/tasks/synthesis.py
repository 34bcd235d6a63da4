"""Image generation from reports: label consistency, similarity to real images, diversity and copies."""

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
"""Minimum number of training images of each class; findings with fewer are not evaluated."""


def evaluate_synthesis(context: EvaluationContext) -> TaskResult:
    """Generate a radiograph from each report and evaluate it with a classifier trained on real images alone.

    ``synthesis.label_auroc``: macro AUROC of the classifier on the generated images against the labels of the
    reports; ``synthesis.label_auroc.real``: on the studies' real images, the ceiling set by the classifier;
    ``….decoded``: on the real images after encoding and decoding by the tokenizer, which isolates its loss of
    detail. Chance is 0.5.

    The generated images are compared with the studies' real ones by :func:`score_images`. Several images of one
    prompt are compared with each other: ``synthesis.ms_ssim_within``, lower is more varied. Its baseline is as many
    real images of different studies.

    Raises:
        UserError: for token shards, which have no real images, without a train split, or if no finding has both
            classes.
    """
    data, split = context.data, context.split
    if not data.has_images:
        raise UserError(f"{data.path} holds codes, but synthesis is compared with real images: pass the image shards")
    net = load_feature_net(context.feature_net or "random", context.feature_weights, context.device)
    studies = data.studies(split, context.limit)
    train = data.studies(TRAIN, context.train_limit, with_text=False)
    train_truth, truth = (truth_matrix(subset.labels, OBSERVATIONS) for subset in (train, studies))
    learnable = with_both_classes(train_truth, OBSERVATIONS, LEAST_POSITIVES)
    evaluated = with_both_classes(truth[:, learnable], [OBSERVATIONS[i] for i in learnable])
    columns = [learnable[i] for i in evaluated]
    findings, truth = [OBSERVATIONS[i] for i in columns], truth[:, columns]

    train_images = data.images(TRAIN, train)
    classifier = FindingClassifier(train_images, train_truth[:, columns], context.classifier_steps, context.seed)
    generated = _generate(context, studies.reports, studies.views, context.seed)
    real = data.images(split, studies)
    decoded = context.pipeline.decode(data.codes(split, studies))
    logits = {"": classifier(generated), ".real": classifier(real), ".decoded": classifier(decoded)}
    metrics = {f"synthesis.label_auroc{name}": macro_auroc(truth, values) for name, values in logits.items()}
    metrics["synthesis.label_auroc.baseline"] = 0.5
    metrics["synthesis.pixel_deviation"] = float(generated.std(axis=0).mean())
    # Deviation of the real images; a far lower one indicates mode collapse, whatever the label AUROC.
    metrics["synthesis.pixel_deviation.baseline"] = float(real.std(axis=0).mean())
    labels = Samples(
        "study",
        studies.ids,
        studies.patients,
        {"truth": truth} | {f"score{name}": values for name, values in logits.items()},
        {f"synthesis.label_auroc{name}": Statistic("macro_auroc", ("truth", f"score{name}")) for name in logits},
    )
    scores = score_images(
        Images(generated, studies.ids, studies.patients),
        Images(real, studies.ids, studies.patients),
        net,
        train_images,
    )
    metrics |= scores.metrics
    details = scores.details | {
        "per_finding": {
            name or "generated": auroc_per_finding(truth, values, findings)
            for name, values in zip(("generated", "real", "decoded"), logits.values(), strict=True)
        },
        "roc": roc_per_finding(truth, logits[""], findings),
        "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
        "sampling": {name: getattr(context, name) for name in ("guidance", "temperature", "top_k", "top_p", "seed")},
        "classifier": {"input": INPUT, "steps": context.classifier_steps, "train_images": len(train)},
    }
    pictures = _variety(context, studies, real, metrics, details)
    details["examples"] = _examples(pictures, studies, generated, real, list(range(min(EXAMPLES, len(studies)))))
    details["failures"] = _examples(pictures, studies, generated, real, _least_consistent(truth, logits[""]))
    details["nearest_pairs"] = []
    for i, j, distance in scores.copies:
        names = f"synthesis-generated-{i}", f"synthesis-train-{j}"
        pictures |= {names[0]: generated[i], names[1]: train_images[j]}
        details["nearest_pairs"].append({"generated": names[0], "train": names[1], "distance": distance})
    protocol = {
        "labels": studies.labels_digest,
        "findings": findings,
        "feature_net": scores.details["feature_net"],
        "image_size": list(real.shape[1:]),
        "images": scores.details["images"],
        "classifier": details["classifier"] | {"seed": context.seed},
    }
    samples = {"synthesis-labels": labels} | scores.samples
    return TaskResult(metrics, details, pictures, studies, samples, protocol)


def _generate(context: EvaluationContext, reports: list[dict[str, str]], views: list[str], seed: int) -> np.ndarray:
    """Generate an image for each report: (N, H, W) floats in [0, 1]."""
    return context.pipeline.decode(
        context.pipeline.draw(
            reports,
            views,
            seed=seed,
            guidance=context.guidance,
            temperature=context.temperature,
            top_k=context.top_k,
            top_p=context.top_p,
        )
    )


def _variety(
    context: EvaluationContext, studies: Studies, real: np.ndarray, metrics: dict[str, float], details: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Add the MS-SSIM between images of one prompt; return the images of the first prompts, for the page."""
    prompts, count = min(context.variety_prompts, len(studies)), context.variety_images
    if not prompts or min(real.shape[1:]) < 11:
        return {}
    reports = [report for report in studies.reports[:prompts] for _ in range(count)]
    views = [view for view in studies.views[:prompts] for _ in range(count)]
    # Seeds other than those of the evaluated images, so that these are new samples.
    generated = _generate(context, reports, views, context.seed + len(studies))
    generated = generated.reshape(prompts, count, *real.shape[1:])
    metrics["synthesis.ms_ssim_within"] = float(np.mean([similarity_within(group) for group in generated]))
    others = real[np.random.default_rng(context.seed).permutation(len(real))[: prompts * count]]
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
    return {
        f"synthesis-generated-again-{i}-{j}": generated[i, j] for i in range(min(3, prompts)) for j in range(count)
    }


def _least_consistent(truth: np.ndarray, logits: np.ndarray) -> list[int]:
    """Return the studies with the highest cross-entropy of their labels on the generated image, worst first."""
    logits = np.clip(logits, -30, 30)
    loss = np.where(truth == 1, np.logaddexp(0, -logits), np.logaddexp(0, logits))
    return [int(i) for i in np.argsort(-np.where(np.isnan(truth), 0, loss).mean(axis=1), kind="stable")[:FAILURES]]


def _examples(
    pictures: dict[str, np.ndarray], studies: Studies, generated: np.ndarray, real: np.ndarray, numbers: list[int]
) -> list[dict[str, str]]:
    """Return generated and real images with their report; add the images to ``pictures``."""
    rows = []
    for i in numbers:
        names = f"synthesis-generated-{i}", f"synthesis-real-{i}"
        pictures |= {names[0]: generated[i], names[1]: real[i]}
        rows.append({"report": studies.texts[i], "generated": names[0], "real": names[1]})
    return rows
