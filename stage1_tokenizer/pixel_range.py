"""Convert shard pixels to model inputs in [-1, 1], and model outputs to [0, 1] for metrics."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from medunifier.data.shards.dataset import Sample
from medunifier.shared.errors import UserError


def to_model(pixels: np.ndarray) -> np.ndarray:
    """(…, H, W) uint8 or uint16 -> float32 in [-1, 1].

    Raises:
        ValueError: for another dtype.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels must be uint8 or uint16, got {pixels.dtype}")
    # In float64 first, so that the value does not depend on the implementation of the division.
    return (pixels / (np.iinfo(pixels.dtype).max / 2) - 1).astype(np.float32)


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return (images.float() * 0.5 + 0.5).clamp(0, 1)


def stack_images(samples: Sequence[tuple[int, Sample]], size: int) -> Tensor:
    """Stack all images of all studies, in order -> (N, 1, size, size) in [-1, 1].

    Raises:
        UserError: if an image has another size, or a study has no image; names the first such study.
    """
    return torch.from_numpy(
        np.stack([_model_image(s, number, size) for _, s in samples for number in range(_count(s))])[:, None]
    )


def stack_pixels(samples: Sequence[tuple[int, Sample]], size: int) -> Tensor:
    """Stack images as :func:`stack_images` does, for :func:`scale_pixels` on the device: uint8 if all have 8 bits.

    Raises:
        UserError: as :func:`stack_images`.
    """
    images = [_checked_image(s, number, size) for _, s in samples for number in range(_count(s))]
    if any(image.dtype != np.uint8 for image in images):
        images = [to_model(image) for image in images]
    return torch.from_numpy(np.stack(images)[:, None])


def scale_pixels(pixels: Tensor) -> Tensor:
    """(…) uint8 -> float32 in [-1, 1], bitwise as :func:`to_model` on every device; float32 is returned unchanged."""
    return _scale(pixels.device)[pixels.int()] if pixels.dtype == torch.uint8 else pixels


@lru_cache
def _scale(device: torch.device) -> Tensor:
    return torch.from_numpy(to_model(np.arange(256, dtype=np.uint8))).to(device)


def collate_images(samples: Sequence[tuple[int, Sample]], size: int, seed: int) -> Tensor:
    """Sample one image per study, seeded by its position in the stream -> (B, 1, size, size) in [-1, 1]."""
    images = [
        _model_image(sample, int(np.random.default_rng((seed, position)).integers(_count(sample))), size)
        for position, sample in samples
    ]
    return torch.from_numpy(np.stack(images)[:, None])


def _count(sample: Sample) -> int:
    if not sample.images:
        raise UserError(f"study {sample.key} has no image: stage 1 and tokenize need image shards, not token shards")
    return len(sample.images)


def _model_image(sample: Sample, number: int, size: int) -> np.ndarray:
    return to_model(_checked_image(sample, number, size))


def _checked_image(sample: Sample, number: int, size: int) -> np.ndarray:
    image = sample.images[number]
    if image.shape != (size, size):
        raise UserError(
            f"image {number} of study {sample.key} has {image.shape[0]} x {image.shape[1]} pixels, the model reads "
            f"{size} x {size}: ingest again with --size {size}, or use a model of that resolution"
        )
    return image
