"""Compare generated radiographs of any system with real ones: distances, neighbourhoods, training copies."""

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
COPY_QUANTILE = 0.01
"""A generated image is a likely copy if it is nearer to a training image than this quantile of held-out images."""


@dataclass(frozen=True)
class Images:
    """One set of images of the comparison.

    Attributes:
        pixels: (N, H, W) floats in [0, 1].
        ids, patients: of each image; a generated image has those of its report.
    """

    pixels: np.ndarray
    ids: Sequence[str]
    patients: Sequence[str]


@dataclass(frozen=True)
class ImageScores:
    """Result of :func:`score_images`.

    Attributes:
        metrics: values, and baselines from real images.
        samples: scores by group: the generated images, and the real ones.
        details: for the result file.
        copies: (generated index, training index, distance) of the nearest pairs, nearest first.
    """

    metrics: dict[str, float]
    samples: dict[str, Samples]
    details: dict[str, Any]
    copies: list[tuple[int, int, float]] = field(default_factory=list)


def score_images(generated: Images, real: Images, net: FeatureNet, train: np.ndarray | None = None) -> ImageScores:
    """Return FID, KID, precision, recall, density, coverage and, with ``train``, the distance to training images.

    ``synthesis.nearest_train`` is the median distance in feature space from a generated image to its nearest
    training image; its baseline is that of the held-out real images. A value far below the baseline and a
    ``synthesis.copied`` far above 1 % indicate memorised training images.

    Args:
        generated, real: the two sets.
        net: the feature network.
        train: (T, H, W) images that the model was trained on.

    Raises:
        ValueError: with fewer than two images in a set.
    """
    features, truth = net(generated.pixels), net(real.pixels)
    metrics = {
        "synthesis.fid": frechet_distance(truth, features),
        "synthesis.kid": kernel_distance(truth, features),
    }
    order = np.random.default_rng(0).permutation(len(truth))
    if len(truth) >= 4:
        # Two halves of the real images: the floor of the distance at about this number of images.
        halves = truth[order[: len(order) // 2]], truth[order[len(order) // 2 :]]
        metrics |= {
            "synthesis.fid.baseline": frechet_distance(*halves),
            "synthesis.kid.baseline": kernel_distance(*halves),
        }
    generated_columns: dict[str, np.ndarray] = {}
    real_columns: dict[str, np.ndarray] = {}
    if min(len(features), len(truth)) > NEIGHBOURS:
        found = manifold(truth, features)
        generated_columns |= {"synthesis.precision": found.precision, "synthesis.density": found.density}
        real_columns |= {"synthesis.recall": found.recall, "synthesis.coverage": found.coverage}
    details: dict[str, Any] = {
        "feature_net": net.describe() | {"features": int(features.shape[1])},
        "images": {"generated": len(features), "real": len(truth)},
        "neighbours": NEIGHBOURS,
        "fid.baseline": "two halves of the real images",
    }
    if min(len(features), len(truth)) <= features.shape[1]:
        details["warning"] = (
            f"{min(len(features), len(truth))} images for {features.shape[1]} features: the Fréchet distance is "
            "far too high and is comparable only at the same number of images"
        )
    copies: list[tuple[int, int, float]] = []
    if train is not None:
        pool = net(train)
        distances, numbers = nearest(features, pool)
        held_out, _ = nearest(truth, pool)
        limit = float(np.quantile(held_out, COPY_QUANTILE))
        generated_columns["synthesis.copied"] = (distances < limit).astype(float)
        metrics |= {
            "synthesis.nearest_train": float(np.median(distances)),
            "synthesis.nearest_train.baseline": float(np.median(held_out)),
            "synthesis.copied.baseline": COPY_QUANTILE,
        }
        details["images"]["train"] = len(pool)
        copies = [
            (int(i), int(numbers[i]), float(distances[i])) for i in np.argsort(distances, kind="stable")[:COPIES]
        ]
    samples = {}
    for name, unit, side, columns in (
        ("generated", "generated image", generated, generated_columns),
        ("real", "real image", real, real_columns),
    ):
        if columns:
            statistics = {metric: mean_of(metric) for metric in columns}
            samples[f"synthesis-{name}"] = Samples(unit, list(side.ids), list(side.patients), columns, statistics)
            metrics |= samples[f"synthesis-{name}"].values()
    return ImageScores(metrics, samples, details, copies)
