"""Evaluate the reconstructions of a frozen tokenizer over a data split, with trivial baselines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medunifier.data.shards.dataset import ShardDataset
from medunifier.data.shards.loader import batches_once
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.images.fidelity import psnr
from medunifier.shared.progress import Progress
from medunifier.stage1_tokenizer.config import PerceptualConfig
from medunifier.stage1_tokenizer.frozen import FrozenTokenizer
from medunifier.stage1_tokenizer.losses.perceptual import build_perceptual
from medunifier.stage1_tokenizer.pixel_range import stack_images, to_unit
from medunifier.stage1_tokenizer.training.fidelity import Fidelity


@dataclass(frozen=True)
class WorstCase:
    """An image with one of the lowest reconstruction PSNRs."""

    study: str
    image: int
    """Index of the image in the study."""
    psnr: float
    """In dB."""
    original: np.ndarray
    """(H, W) float32 in [0, 1]."""
    reconstruction: np.ndarray
    """(H, W) float32 in [0, 1]."""


def evaluate_tokenizer(
    tokenizer: FrozenTokenizer,
    dataset: ShardDataset,
    *,
    perceptual: PerceptualConfig | None = None,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    worst: int = 8,
) -> dict[str, Any]:
    """Encode and decode all images of ``dataset`` and compute reconstruction metrics.

    Args:
        tokenizer: the evaluated tokenizer, on its device.
        dataset: image shards; the baseline's mean image is computed from the ``train`` split of the same folder.
        perceptual: net and weights of LPIPS or another perceptual distance; None omits it.
        features: feature extractor of a Fréchet distance, (N, H, W) floats in [0, 1] -> (N, D); None omits it.
        batch_size: studies per batch.
        limit: maximum number of studies.
        worst: number of images of lowest PSNR to return.

    Returns:
        A dictionary with

        - means over all images: ``psnr`` (dB), ``ssim``, ``ms_ssim`` (from 176 pixels on), ``lpips`` with
          ``lpips_net`` (net and weights; values are comparable only for the same net);
        - ``features``: features of the originals, of the reconstructions, and of the mean image repeated as often;
        - ``codebook_usage`` (fraction of entries that occur) and ``perplexity``, over the data set;
        - ``psnr_baseline``: the mean training image in place of every reconstruction;
        - ``codebook_usage_baseline``: 1 / K, of a collapsed tokenizer with a single code;
        - ``images``, ``studies``: how many were evaluated;
        - ``worst``: list of :class:`WorstCase`, lowest PSNR first.

    Raises:
        UserError: if the images do not have the tokenizer's size.
    """
    device, size = tokenizer.codebook.device, tokenizer.image_size
    net = None if perceptual is None else build_perceptual(perceptual)
    feature_pairs = _FeaturePairs(features)
    fidelity = Fidelity(tokenizer.codebook_size, size, None if net is None else net.to(device), device)
    mean = _mean_image(dataset, size, batch_size, limit).to(device)
    baseline: list[float] = []
    cases: list[WorstCase] = []
    studies = len(dataset) if limit is None else min(limit, len(dataset))

    def collate(samples: Any) -> tuple[list[tuple[str, int]], int, Tensor]:
        names = [(sample.key, number) for _, sample in samples for number in range(len(sample.images))]
        return names, len(samples), stack_images(samples, size)

    with Progress(studies, "evaluating tokenizer", "study") as progress:
        for names, count, images in batches_once(dataset, collate, batch_size=batch_size, limit=limit):
            images = images.to(device)
            codes = tokenizer.encode_indices(images)
            reconstruction = tokenizer.decode_indices(codes).mean(dim=1, keepdim=True)  # three channels to grey
            values = fidelity.add(images, reconstruction, codes)["psnr"].tolist()
            baseline += psnr(to_unit(images), to_unit(mean).expand_as(images)).tolist()
            pair = [to_unit(batch)[:, 0].cpu().numpy() for batch in (images, reconstruction)]  # (B, H, W) each
            feature_pairs.add(*pair)
            for (study, number), value, a, b in zip(names, values, *pair, strict=True):
                cases.append(WorstCase(study, number, value, a, b))
            cases = sorted(cases, key=lambda case: (case.psnr, case.study, case.image))[:worst]
            progress.advance(count)
    result: dict[str, Any] = fidelity.figures()
    if net is not None:
        result[f"{net.metric}_net"] = net.name
    if features is not None:
        original, reconstructed = feature_pairs.all()
        mean_features = np.repeat(features(to_unit(mean)[0].cpu().numpy()), len(original), axis=0)
        result["features"] = (original, reconstructed, mean_features)
    result["psnr_baseline"] = float(np.mean(baseline))
    result["codebook_usage_baseline"] = 1 / tokenizer.codebook_size
    return result | {"images": len(baseline), "studies": studies, "worst": cases}


class _FeaturePairs:
    """Collect features of originals and reconstructions in chunks, so that the images need not fit in memory."""

    IMAGES = 256

    def __init__(self, features: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self._features = features
        self._images: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._outputs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def add(self, originals: np.ndarray, reconstructions: np.ndarray) -> None:
        if self._features is None:
            return
        for pending, batch in zip(self._images, (originals, reconstructions), strict=True):
            pending.append(batch)
        if sum(map(len, self._images[0])) >= self.IMAGES:
            self._flush()

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        if self._images[0]:
            self._flush()
        original, reconstructed = (np.concatenate(chunks) for chunks in self._outputs)
        return original, reconstructed

    def _flush(self) -> None:
        assert self._features is not None  # noqa: S101 - narrows a type
        for pending, outputs in zip(self._images, self._outputs, strict=True):
            outputs.append(self._features(np.concatenate(pending)))
            pending.clear()


def _mean_image(dataset: ShardDataset, size: int, batch_size: int, limit: int | None) -> Tensor:
    """Return the (1, 1, H, W) mean of the training images in [-1, 1], or of ``dataset`` without a training split."""
    try:
        source = ShardDataset(dataset.root, "train")
    except UserError:
        source = dataset
    total, count = torch.zeros(1, 1, size, size, dtype=torch.float64), 0
    for images in batches_once(source, lambda s: stack_images(s, size), batch_size=batch_size, limit=limit):
        total += images.double().sum(dim=0, keepdim=True)
        count += len(images)
    return (total / count).float()
