"""Fréchet distance between the features of two sets of images: FID, once a net and its input are named."""

import numpy as np


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two sets (Heusel et al., 2017), in float64.

    The root's trace is the sum of the singular values of A₁A₂ᵀ, where A are the centred features over
    √(N − 1): no root of a matrix is taken, so nothing turns complex where there are fewer images than
    features, and a set against itself gives 0 to rounding. With few images the figure is biased upwards (two
    samples of one set do not give 0), so it is comparable only at the same number of images.

    Args:
        features, others: (N, D) and (M, D), any order.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: with fewer than two images on a side, or different widths.
    """
    a, b = np.asarray(features, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a Fréchet distance needs two images a side and one width, got {a.shape} and {b.shape}")
    means = a.mean(axis=0), b.mean(axis=0)
    a, b = (a - means[0]) / np.sqrt(len(a) - 1), (b - means[1]) / np.sqrt(len(b) - 1)
    # tr((Σ₁Σ₂)^½) = Σ σ(A₁A₂ᵀ); the smaller of A₁A₂ᵀ (N × M) and Σ₁^½Σ₂^½ (D × D) is decomposed.
    cross = a @ b.T if len(a) * len(b) <= a.shape[1] ** 2 else _root(a.T @ a) @ _root(b.T @ b)
    root = np.linalg.svd(cross, compute_uv=False).sum()
    return max(0.0, float(((means[0] - means[1]) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
