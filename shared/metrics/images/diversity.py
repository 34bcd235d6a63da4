"""Diversity of the images generated from one prompt: mean pairwise MS-SSIM, lower is more diverse."""

from itertools import combinations

import numpy as np
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

WINDOW = 11
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, from fine to coarse (Wang et al., 2003)."""


def scales_of(size: int) -> int:
    """How many of the five scales an image of ``size`` pixels is given: 1 from 11 pixels on, 5 from 176 on.

    Each halves the one before, and the window must fit into the last; torchmetrics asks for more at the fourth.
    """
    return sum(size >= WINDOW * max(2**scale, scale**2) for scale in range(len(WEIGHTS)))


def similarity_within(images: np.ndarray) -> float:
    """Return the mean MS-SSIM over all pairs of images generated from one prompt.

    Below 176 pixels there are fewer than five scales; their weights are then brought to a sum of 1, and the
    figure is comparable only at that size: :func:`scales_of` returns their number.

    Args:
        images: (N, H, W) floats in [0, 1], N ≥ 2.

    Returns:
        In [0, 1]; 1 where all images are equal.

    Raises:
        ValueError: for one image, or images too small for a single scale.
    """
    scales = scales_of(min(images.shape[1:]))
    if len(images) < 2 or not scales:
        raise ValueError(f"similarity needs two images of at least {WINDOW} pixels, got {images.shape}")
    weights = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    pairs = np.array(list(combinations(range(len(images)), 2)))
    stack = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
    values = multiscale_structural_similarity_index_measure(
        stack[pairs[:, 0]], stack[pairs[:, 1]], data_range=1.0, betas=tuple(weights.tolist()), normalize="relu"
    )
    assert isinstance(values, torch.Tensor)  # noqa: S101 - narrows a type
    return float(values)
