"""Drawn radiographs against real ones, whoever drew them: distances, neighbourhoods, copies of training images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medunifier.shared.metrics.images.feature_nets import FeatureNet
from medunifier.shared.metrics.images.frechet import frechet_distance
from medunifier.shared.metrics.images.kernel_distance import kernel_distance
from medunifier.shared.metrics.images.manifold import NEIGHBOURS, manifold, nearest
from medunifier.shared.metrics.samples import Samples, mean_of

COPIES = 4
COPY_SHARE = 0.01
"""A drawn image is called a likely copy below the distance that this share of unseen real images has."""


@dataclass(frozen=True)
class Images:
    """One side of the comparison.

    Attributes:
        pixels: (N, H, W) floats in [0, 1].
        ids, patients: of each; a drawn image has those of the report that it was drawn from.
    """

    pixels: np.ndarray
    ids: Sequence[str]
    patients: Sequence[str]


@dataclass(frozen=True)
class ImageScores:
    """What :func:`score_images` finds.

    Attributes:
        metrics: figures and, beside them, what real images earn.
        samples: rows by group: the drawn images, and the real ones.
        details: for the result file.
        copies: (drawn number, training number, distance) of the nearest pairs, nearest first.
    """

    metrics: dict[str, float]
    samples: dict[str, Samples]
    details: dict[str, Any]
    copies: list[tuple[int, int, float]] = field(default_factory=list)


def score_images(drawn: Images, real: Images, net: FeatureNet, train: np.ndarray | None = None) -> ImageScores:
    """FID, KID, precision, recall, density, coverage, and with training images the distance to the nearest.

    ``synthesis.nearest_train`` is the median distance in feature space of a drawn image to its nearest
    training image; beside it that of the real images, which the model has not seen. Far below it, and a
    ``synthesis.copied`` far above 1 %, mean that training images are recited.

    Args:
        drawn, real: the two sides.
        net: the features' net.
        train: (T, H, W) images that the model was trained on.

    Raises:
        ValueError: with fewer than two images on a side.
    """
    features, truth = net(drawn.pixels), net(real.pixels)
    metrics = {
        "synthesis.fid": frechet_distance(truth, features),
        "synthesis.kid": kernel_distance(truth, features),
    }
    half = np.random.default_rng(0).permutation(len(truth))
    if len(truth) >= 4:
        # Two halves of the real images: what no figure can go below at about this number.
        parts = truth[half[: len(half) // 2]], truth[half[len(half) // 2 :]]
        metrics |= {
            "synthesis.fid.baseline": frechet_distance(*parts),
            "synthesis.kid.baseline": kernel_distance(*parts),
        }
    of_drawn: dict[str, np.ndarray] = {}
    of_real: dict[str, np.ndarray] = {}
    if min(len(features), len(truth)) > NEIGHBOURS:
        found = manifold(truth, features)
        of_drawn |= {"synthesis.precision": found.precision, "synthesis.density": found.density}
        of_real |= {"synthesis.recall": found.recall, "synthesis.coverage": found.coverage}
    details: dict[str, Any] = {
        "feature_net": net.describe() | {"features": int(features.shape[1])},
        "images": {"drawn": len(features), "real": len(truth)},
        "neighbours": NEIGHBOURS,
        "fid.baseline": "the real images in two halves",
    }
    if min(len(features), len(truth)) <= features.shape[1]:
        details["warning"] = (
            f"{min(len(features), len(truth))} images for {features.shape[1]} features: the Fréchet distance lies "
            "far too high and compares with nothing but the same number of images"
        )
    copies: list[tuple[int, int, float]] = []
    if train is not None:
        pool = net(train)
        distances, numbers = nearest(features, pool)
        unseen, _ = nearest(truth, pool)
        limit = float(np.quantile(unseen, COPY_SHARE))
        of_drawn["synthesis.copied"] = (distances < limit).astype(float)
        metrics |= {
            "synthesis.nearest_train": float(np.median(distances)),
            "synthesis.nearest_train.baseline": float(np.median(unseen)),
            "synthesis.copied.baseline": COPY_SHARE,
        }
        details["images"]["train"] = len(pool)
        order = np.argsort(distances, kind="stable")[:COPIES]
        copies = [(int(i), int(numbers[i]), float(distances[i])) for i in order]
    samples = {}
    for name, side, columns in (("drawn", drawn, of_drawn), ("real", real, of_real)):
        if columns:
            statistics = {figure: mean_of(figure) for figure in columns}
            samples[f"synthesis-{name}"] = Samples(
                f"{name} image", list(side.ids), list(side.patients), columns, statistics
            )
            metrics |= samples[f"synthesis-{name}"].values()
    return ImageScores(metrics, samples, details, copies)
