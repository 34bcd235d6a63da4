"""Kernel distance between the features of two sets of images: KID, once a net and its input are named."""

import numpy as np


def kernel_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³ (Bińkowski et al., 2018).

    It is computed over all images at once. Most code averages over random subsets of 1,000, which has the same
    expectation, more noise, and a seed. The expectation does not depend on the number of images; two samples of
    one set give values around 0, negative ones included.

    Args:
        features, others: (N, D) and (M, D).

    Raises:
        ValueError: with fewer than two images on a side, or different widths.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"a kernel distance needs two images a side and one width, got {x.shape} and {y.shape}")
    within = [_kernel(z, z) for z in (x, y)]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return float(means[0] + means[1] - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
