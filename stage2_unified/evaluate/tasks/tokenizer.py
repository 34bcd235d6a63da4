"""Evaluate a frozen tokenizer: the metrics of stage 1 over a split, and the findings preserved in reconstructions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.data.shards.dataset import ShardDataset
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.auroc import auroc_per_finding, macro_auroc, truth_matrix
from medunifier.shared.metrics.bootstrap import bootstrap_interval
from medunifier.shared.metrics.images.feature_nets import load_feature_net
from medunifier.shared.metrics.images.frechet import frechet_distance
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.evaluate import evaluate_tokenizer
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.pixel_range import to_unit
from medunifier.stage2_unified.evaluate.classifiers.classifier import INPUT, FindingClassifier
from medunifier.stage2_unified.evaluate.results.result import TaskResult, interval
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, Studies, with_both_classes
from medunifier.stage2_unified.evaluate.tasks.reports import TRAIN
from medunifier.stage2_unified.evaluate.tasks.synthesis import LEAST_POSITIVES

METRICS = ("psnr", "ssim", "ms_ssim", "lpips", "radiograph_distance", "codebook_usage", "perplexity")
EXAMPLES = 6


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Options of the task, a part of the command's.

    Attributes:
        split: split to evaluate.
        tokenizer_limit: maximum number of studies; 0 = all.
        perceptual: network of LPIPS or of the radiograph-feature distance.
        feature_net, feature_weights: network of rFID by its name in `medunifier.shared.metrics.images.feature_nets`;
            "" = no rFID.
        train_limit, classifier_steps: of the classifier of findings; 0 steps = no classifier.
        seed, bootstrap: of the classifier, and of the interval.
    """

    split: str = "test"
    tokenizer_limit: int = 0
    perceptual: PerceptualConfig = PerceptualConfig("none")
    feature_net: str = ""
    feature_weights: str | None = None
    train_limit: int = 2000
    classifier_steps: int = 500
    seed: int = 0
    bootstrap: int = 200


def evaluate_tokenizer_task(
    tokenizer: FrozenTokenizer, data: EvaluationData, context: TokenizerEvaluation
) -> TaskResult:
    """Return PSNR, SSIM, perceptual distance, rFID and codebook usage over all images, and the findings preserved.

    Codebook usage grows with the number of images, so it is counted over all of them. Baselines: the mean training
    image as every reconstruction, and a single code.

    Raises:
        UserError: for token shards, which have no images to compare reconstructions with, and for a network whose
            weights are missing or differ from the stated checksum.
    """
    if not data.has_images:
        raise UserError(f"{data.path} holds codes, but the tokenizer is evaluated on images: pass the image shards")
    split, limit = context.split, context.tokenizer_limit
    net = load_feature_net(context.feature_net, context.feature_weights) if context.feature_net else None
    dataset: ShardDataset = data.dataset(split)
    found: dict[str, Any] = evaluate_tokenizer(
        tokenizer, dataset, perceptual=context.perceptual, features=net, limit=limit or None
    )
    metrics = {f"tokenizer.{name}": float(found[name]) for name in METRICS if name in found}
    metrics["tokenizer.psnr.baseline"] = found["psnr_baseline"]
    metrics["tokenizer.codebook_usage.baseline"] = found["codebook_usage_baseline"]
    details: dict[str, Any] = {
        "images": found["images"],
        "studies": found["studies"],
        "baseline": "the mean training image; a single code",
        "examples": [],
        "nets": {name.removesuffix("_net"): value for name, value in found.items() if name.endswith("_net")},
    }
    if net is not None:
        original, reconstructed, mean = found["features"]
        metrics["tokenizer.rfid"] = frechet_distance(original, reconstructed)
        metrics["tokenizer.rfid.baseline"] = frechet_distance(original, mean)
        details["nets"]["rfid"] = (
            f"{net.name}, SHA-256 {net.sha256[:12]}; {net.describe()['input']}; {len(original)} images against their "
            f"reconstructions of split {split}"
        )
    if context.classifier_steps:
        _add_findings(metrics, details, tokenizer, data, context)
    return TaskResult(metrics, details, _add_examples(details, tokenizer, dataset, found["worst"]))


def _add_findings(
    metrics: dict[str, float],
    details: dict[str, Any],
    tokenizer: FrozenTokenizer,
    data: EvaluationData,
    context: TokenizerEvaluation,
) -> None:
    """Add the AUROC of a classifier of findings, trained on original images, on originals and reconstructions.

    ``label_auroc``: macro AUROC on the reconstructions; ``label_auroc.real``: on the same originals. The difference
    is what encoding loses, as far as this classifier can detect. Data without labels have neither.
    """
    try:
        train = data.studies(TRAIN, context.train_limit, with_text=False)
        studies = data.studies(context.split, context.tokenizer_limit, with_text=False)
        train_truth, truth = (truth_matrix(subset.labels, OBSERVATIONS) for subset in (train, studies))
        learnable = with_both_classes(train_truth, OBSERVATIONS, LEAST_POSITIVES)
        evaluated = with_both_classes(truth[:, learnable], [OBSERVATIONS[i] for i in learnable])
    except UserError as error:
        details["findings_left_out"] = str(error)
        return
    columns = [learnable[i] for i in evaluated]
    findings, truth = [OBSERVATIONS[i] for i in columns], truth[:, columns]
    classifier = FindingClassifier(
        data.images(TRAIN, train), train_truth[:, columns], context.classifier_steps, context.seed
    )
    real = classifier(data.images(context.split, studies))
    reconstructed = classifier(_reconstructions(tokenizer, data, context.split, studies))
    metrics["tokenizer.label_auroc"] = macro_auroc(truth, reconstructed)
    metrics["tokenizer.label_auroc.baseline"] = 0.5
    metrics["tokenizer.label_auroc.real"] = macro_auroc(truth, real)
    bounds = bootstrap_interval(
        lambda rows: macro_auroc(truth[rows], reconstructed[rows]) - macro_auroc(truth[rows], real[rows]),
        studies.patients,
        context.bootstrap,
        seed=context.seed,
    )
    metrics["tokenizer.label_auroc_change"] = metrics["tokenizer.label_auroc"] - metrics["tokenizer.label_auroc.real"]
    details["intervals"] = {"tokenizer.label_auroc_change": interval(bounds)}
    details["per_finding"] = {
        name: auroc_per_finding(truth, scores, findings)
        for name, scores in (("originals", real), ("reconstructions", reconstructed))
    }
    details["positives"] = dict(zip(findings, np.nansum(truth, axis=0).astype(int).tolist(), strict=True))
    details["nets"]["findings"] = (
        f"a small convolutional network at {INPUT} pixels, {context.classifier_steps} steps on {len(train)} original "
        f"training images; evaluated on {len(studies)} studies of split {context.split}"
    )


def _reconstructions(tokenizer: FrozenTokenizer, data: EvaluationData, split: str, studies: Studies) -> np.ndarray:
    """Encode and decode the studies' images: (N, H, W) floats in [0, 1]."""
    codes = torch.from_numpy(data.codes(split, studies)).to(tokenizer.codebook.device)
    return np.concatenate([_decode(tokenizer, batch) for batch in codes.split(32)])


def _decode(tokenizer: FrozenTokenizer, codes: torch.Tensor) -> np.ndarray:
    # The channels of a three-channel tokenizer are nearly equal; their mean is the grey image.
    return to_unit(tokenizer.decode_indices(codes).mean(dim=1)).cpu().numpy()


def _add_examples(
    details: dict[str, Any], tokenizer: FrozenTokenizer, dataset: ShardDataset, worst: list[Any]
) -> dict[str, np.ndarray]:
    """Add the first images and those of lowest PSNR to the examples; return originals and reconstructions."""
    first = [dataset[number].images[0] for number in range(min(EXAMPLES, len(dataset)))]
    decoded = _decode(tokenizer, torch.from_numpy(tokenizer.encode_images(first)).to(tokenizer.codebook.device))
    rows = [("first", f"study {i}", image / np.iinfo(image.dtype).max, decoded[i]) for i, image in enumerate(first)]
    rows += [("worst", f"{case.psnr:.1f} dB", case.original, case.reconstruction) for case in worst]
    pictures: dict[str, np.ndarray] = {}
    for i, (kind, label, original, reconstruction) in enumerate(rows):
        names = f"tokenizer-original-{i}", f"tokenizer-reconstruction-{i}"
        pictures |= {names[0]: original, names[1]: reconstruction}
        details["examples"].append({"kind": kind, "label": label, "original": names[0], "reconstruction": names[1]})
    return pictures
