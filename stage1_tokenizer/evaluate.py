"""How faithful a frozen tokenizer is, over a whole split, beside what costs nothing."""

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
from medunifier.stage1_tokenizer.preprocessing import stack_images, to_unit
from medunifier.stage1_tokenizer.training.fidelity import Fidelity


@dataclass(frozen=True)
class WorstCase:
    """An image that came back least like itself."""

    study: str
    image: int
    """Its number in the study."""
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
    """Encode and decode every image of ``dataset`` and compare.

    Args:
        tokenizer: the judged one, on the device where it is to work.
        dataset: image shards; the ``train`` split of the same folder gives the baseline's mean image.
        perceptual: which LPIPS or other perceptual distance; None leaves the figure out.
        features: of a Fréchet distance: (N, H, W) floats in [0, 1] -> (N, D).
        batch_size: studies at a time.
        limit: at most so many studies.
        worst: so many images of lowest PSNR are returned.

    Returns:
        ``psnr`` (dB), ``ssim``, ``ms_ssim`` (from 176 pixels on), ``lpips`` and ``lpips_net`` (which net and
        weights; without the name the figure means nothing): means over all images. ``features``: those of all
        originals, of all reconstructions, and of the baseline's image as often. ``codebook_usage`` (share of
        the entries that occur) and ``perplexity``, over the whole set. ``psnr_baseline``: the training images'
        mean given as every reconstruction. ``codebook_usage_baseline``: 1 / K, a collapsed tokenizer that gives
        one code everywhere. ``images``, ``studies``: how many were judged. ``worst``: :class:`WorstCase` list,
        lowest PSNR first.

    Raises:
        UserError: if the images are not of the tokenizer's size.
    """
    device, size = tokenizer.codebook.device, tokenizer.image_size
    net = None if perceptual is None else build_perceptual(perceptual)
    pairs_of_features = _FeaturePairs(features)
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
            reconstruction = tokenizer.decode_indices(codes).mean(dim=1, keepdim=True)  # grey of three channels
            values = fidelity.add(images, reconstruction, codes)["psnr"].tolist()
            baseline += psnr(to_unit(images), to_unit(mean).expand_as(images)).tolist()
            sides = [to_unit(side)[:, 0].cpu().numpy() for side in (images, reconstruction)]
            pairs_of_features.add(*sides)
            for (study, number), value, a, b in zip(names, values, *sides, strict=True):
                cases.append(WorstCase(study, number, value, a, b))
            cases = sorted(cases, key=lambda case: (case.psnr, case.study, case.image))[:worst]
            progress.advance(count)
    result: dict[str, Any] = fidelity.figures()
    if net is not None:
        result[f"{net.figure}_net"] = net.name
    if features is not None:
        original, reconstructed = pairs_of_features.all()
        blank = np.repeat(features(to_unit(mean)[0].cpu().numpy()), len(original), axis=0)
        result["features"] = (original, reconstructed, blank)
    result["psnr_baseline"] = float(np.mean(baseline))
    result["codebook_usage_baseline"] = 1 / tokenizer.codebook_size
    return result | {"images": len(baseline), "studies": studies, "worst": cases}


class _FeaturePairs:
    """Collects both sides' features, some hundred images at a time: the images of a split need not fit in memory."""

    IMAGES = 256

    def __init__(self, features: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self._features = features
        self._images: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def add(self, originals: np.ndarray, reconstructions: np.ndarray) -> None:
        if self._features is None:
            return
        for kept, batch in zip(self._images, (originals, reconstructions), strict=True):
            kept.append(batch)
        if sum(map(len, self._images[0])) >= self.IMAGES:
            self._flush()

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        if self._images[0]:
            self._flush()
        original, reconstructed = (np.concatenate(parts) for parts in self._found)
        return original, reconstructed

    def _flush(self) -> None:
        assert self._features is not None
        for kept, found in zip(self._images, self._found, strict=True):
            found.append(self._features(np.concatenate(kept)))
            kept.clear()


def _mean_image(dataset: ShardDataset, size: int, batch_size: int, limit: int | None) -> Tensor:
    """(1, 1, H, W) mean of the training images in [-1, 1]; of the judged ones where there is no training split."""
    try:
        source = ShardDataset(dataset.root, "train")
    except UserError:
        source = dataset
    total, count = torch.zeros(1, 1, size, size, dtype=torch.float64), 0
    for images in batches_once(source, lambda s: stack_images(s, size), batch_size=batch_size, limit=limit):
        total += images.double().sum(dim=0, keepdim=True)
        count += len(images)
    return (total / count).float()
