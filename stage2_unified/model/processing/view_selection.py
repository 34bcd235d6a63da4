"""Select which images of a study, and of its prior study, are model inputs."""

from collections.abc import Sequence

import numpy as np

from medunifier.stage2_unified.model.vocabulary import view_name

_FRONTAL = ("pa", "ap")


def choose_view(views: Sequence[str], generator: np.random.Generator | None) -> int:
    """Return the number of one image: random with a ``generator`` (in training), else the first frontal one."""
    if generator is not None:
        return int(generator.integers(len(views)))
    for number, position in enumerate(views):
        if view_name(position) in _FRONTAL:
            return number
    return 0


def choose_views(
    views: Sequence[str], max_views: int, generator: np.random.Generator | None, view_dropout: float = 0.0
) -> list[int]:
    """Return the numbers of at most ``max_views`` images, in the order of the sequence.

    Args:
        views: view positions of all images of the study.
        max_views: most images.
        generator: random order in training; None = the first frontal image first.
        view_dropout: probability of one image alone, in training.
    """
    if generator is None or max_views == 1:
        first = choose_view(views, generator)
        return [first, *(number for number in range(len(views)) if number != first)][:max_views]
    order: list[int] = generator.permutation(len(views)).tolist()
    return order[: 1 if generator.random() < view_dropout else max_views]


def choose_prior_view(views: Sequence[str], like: str) -> int:
    """Return the number of the prior study's image: of the view position ``like``, else a frontal one."""
    same = [number for number, position in enumerate(views) if view_name(position) == view_name(like)]
    return same[0] if same else choose_view(views, None)
