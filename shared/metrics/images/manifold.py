"""Precision, recall, density and coverage: fidelity and diversity of generated images, measured separately.

A Fréchet distance is one number for both. CheXGenBench found precision .782 beside recall .041 in one model:
sharp radiographs, all of a kind.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

NEIGHBOURS = 5


@dataclass(frozen=True)
class Manifold:
    """One value an image; the means are the figures.

    Attributes:
        precision: (M,) 1 where a generated image lies within some real image's sphere.
        density: (M,) spheres of real images around a generated image, over k: more than 1 is possible.
        recall: (N,) 1 where a real image lies within some generated image's sphere.
        coverage: (N,) 1 where a real image's sphere holds a generated image.
    """

    precision: np.ndarray
    density: np.ndarray
    recall: np.ndarray
    coverage: np.ndarray


def manifold(real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS) -> Manifold:
    """Compare two sets by spheres around each image that reach to its k-th nearest neighbour within its set.

    Precision and recall after Kynkäänniemi et al. (2019), density and coverage after Naeem et al. (2020),
    who show that the first two are sensitive to single outliers. A point on a sphere's surface is outside, as
    in Naeem's code.

    Args:
        real, generated: (N, D) and (M, D) features.
        neighbours: k; 5 is usual.

    Raises:
        ValueError: if a side has no more than k images.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need more than {neighbours} images a side, got {len(real)} and {len(generated)}"
        )
    real, generated = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    distances = cdist(real, generated)  # (N, M)
    real_radius, generated_radius = _radius(real, neighbours), _radius(generated, neighbours)
    inside = distances < real_radius[:, None]
    return Manifold(
        precision=inside.any(axis=0).astype(float),
        density=inside.sum(axis=0) / neighbours,
        recall=(distances < generated_radius[None, :]).any(axis=1).astype(float),
        coverage=(distances.min(axis=1) < real_radius).astype(float),
    )


def _radius(points: np.ndarray, neighbours: int) -> np.ndarray:
    """(N,) distance to the k-th nearest other point of the set."""
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]


def nearest(queries: np.ndarray, pool: np.ndarray, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest pool entry of each query: (Q,) distances and (Q,) indices into the pool.

    A memorising model generates images that are nearer to its training images than unseen real ones are.

    Args:
        queries, pool: (Q, D) and (P, D) features; the pool not empty.
        block: queries at a time, to bound the memory.
    """
    distances, numbers = [], []
    for begin in range(0, len(queries), block):
        table = cdist(queries[begin : begin + block], pool)
        numbers.append(table.argmin(axis=1))
        distances.append(table.min(axis=1))
    return np.concatenate(distances), np.concatenate(numbers)
