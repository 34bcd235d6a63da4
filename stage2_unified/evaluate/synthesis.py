"""Image generation: does a radiograph drawn from a report show what the report says?"""

import numpy as np

from data.observations import OBSERVATIONS
from shared.errors import UserError
from shared.metrics.auroc import auroc_per_finding, macro_auroc, macro_auroc_interval, truth_matrix
from stage2_unified.evaluate.classifier import INPUT, FindingClassifier
from stage2_unified.evaluate.reports import TRAIN
from stage2_unified.evaluate.result import Judging, TaskResult, interval
from stage2_unified.evaluate.studies import with_both_classes

EXAMPLES = 12
LEAST_POSITIVES = 10
"""Training images of each class below which a finding cannot be learned, and judges nothing."""


def judge_synthesis(judging: Judging) -> TaskResult:
    """One radiograph drawn from each report, judged by a classifier that saw real training images alone.

    ``synthesis.label_auroc``: macro AUROC of the classifier on the drawn images against the labels of the
    reports. Beside it ``synthesis.label_auroc.real``, the same on the studies' real images: what the
    classifier can see at all, and so the ceiling; and ``….decoded``, on the real images through the
    tokenizer, which tells what its loss of detail costs. Chance is 0.5.

    Raises:
        UserError: for token shards (there are no real images), without a train split, or if no finding has
            both classes.
    """
    data, split = judging.data, judging.split
    if not data.has_images:
        raise UserError(f"{data.path} holds codes: synthesis is judged against real images, give the image shards")
    studies = data.studies(split, judging.limit)
    train = data.studies(TRAIN, judging.train_limit, with_text=False)
    train_truth, truth = (truth_matrix(draw.labels, OBSERVATIONS) for draw in (train, studies))
    learnable = with_both_classes(train_truth, OBSERVATIONS, LEAST_POSITIVES)
    judged = with_both_classes(truth[:, learnable], [OBSERVATIONS[i] for i in learnable])
    columns = [learnable[i] for i in judged]
    findings, truth = [OBSERVATIONS[i] for i in columns], truth[:, columns]

    classifier = FindingClassifier(
        data.images(TRAIN, train), train_truth[:, columns], judging.classifier_steps, judging.seed
    )
    drawn = judging.pipeline.decode(
        judging.pipeline.draw(
            studies.reports,
            studies.views,
            seed=judging.seed,
            guidance=judging.guidance,
            temperature=judging.temperature,
            top_k=judging.top_k,
            top_p=judging.top_p,
        )
    )
    real = data.images(split, studies)
    decoded = judging.pipeline.decode(data.codes(split, studies))
    scores = {"": classifier(drawn), ".real": classifier(real), ".decoded": classifier(decoded)}
    metrics = {f"synthesis.label_auroc{name}": macro_auroc(truth, values) for name, values in scores.items()}
    metrics["synthesis.label_auroc.baseline"] = 0.5
    metrics["synthesis.pixel_deviation"] = float(drawn.std(axis=0).mean())
    # Real images' own spread: drawn ones far below it are all alike, however right their labels.
    metrics["synthesis.pixel_deviation.baseline"] = float(real.std(axis=0).mean())
    bounds = macro_auroc_interval(truth, scores[""], studies.patients, judging.bootstrap, judging.seed)
    details = {
        "per_finding": {
            name or "generated": auroc_per_finding(truth, values, findings)
            for name, values in zip(("generated", "real", "decoded"), scores.values(), strict=True)
        },
        "positives": dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True)),
        "intervals": {"synthesis.label_auroc": interval(bounds)},
        "sampling": {name: getattr(judging, name) for name in ("guidance", "temperature", "top_k", "top_p", "seed")},
        "classifier": {"input": INPUT, "steps": judging.classifier_steps, "train_images": len(train)},
        "examples": [
            {
                "report": studies.texts[i],
                "generated": f"synthesis-generated-{i}",
                "real": f"synthesis-real-{i}",
            }
            for i in range(min(EXAMPLES, len(studies)))
        ],
    }
    pictures: dict[str, np.ndarray] = {}
    for i in range(min(EXAMPLES, len(studies))):
        pictures |= {f"synthesis-generated-{i}": drawn[i], f"synthesis-real-{i}": real[i]}
    return TaskResult(metrics, details, pictures, studies)
