"""Fidelity of reconstructed radiographs: PSNR, SSIM, MS-SSIM, one value an image.

torchmetrics is imported by the first call: with scipy, matplotlib and torchvision it takes as long to load as torch,
and a training computes its first step before its first metric.
"""

import torch
from torch import Tensor

MS_SSIM_MIN_SIZE = 176
"""Five scales, each half of the one before, under a window of 11: smaller images have no fifth scale."""


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (B, C, H, W) pairs in [0, 1] -> (B,) in dB; equal images give 100."""
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) of (B, C, H, W) pairs in [0, 1] -> (B,), 1 for equal images."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(images.float(), others.float(), data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)  # noqa: S101 - narrows a type
    return values.reshape(len(images)).double()


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al., 2003) of (B, C, H, W) pairs in [0, 1] -> (B,).

    Raises:
        ValueError: for images below :data:`MS_SSIM_MIN_SIZE` pixels.
    """
    if min(images.shape[-2:]) < MS_SSIM_MIN_SIZE:
        raise ValueError(f"MS-SSIM needs at least {MS_SSIM_MIN_SIZE} pixels a side, got {tuple(images.shape[-2:])}")
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    values = multiscale_structural_similarity_index_measure(
        images.float(), others.float(), data_range=1.0, reduction="none", normalize="relu"
    )
    return torch.as_tensor(values).reshape(len(images)).double()
