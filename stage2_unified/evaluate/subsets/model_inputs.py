"""What the judged model sees of a study: one frontal image, or as many as it was trained with, and the prior."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medunifier.data.shards.dataset import Sample
from medunifier.data.shards.prior_studies import prior_study_indices
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, Studies
from medunifier.stage2_unified.model.processing.view_selection import choose_prior_view, choose_views

Prior = tuple[np.ndarray, str]


@dataclass(frozen=True)
class Seen:
    """Of N studies, as a pipeline takes them.

    Attributes:
        codes: (N, h, w), or N arrays (S, h, w).
        views: N view positions, or N lists of them.
        priors: of each study an image of the visit before, or None; None = the model knows of no such thing.
    """

    codes: np.ndarray | list[np.ndarray]
    views: list[str] | list[list[str]]
    priors: list[Prior | None] | None = None

    def of(self, numbers: Sequence[int] | np.ndarray) -> "Seen":
        """Some of the studies, in that order."""
        codes = self.codes[np.asarray(numbers)] if isinstance(self.codes, np.ndarray) else None
        views: Any = [self.views[i] for i in numbers]
        priors = None if self.priors is None else [self.priors[i] for i in numbers]
        return Seen([self.codes[i] for i in numbers] if codes is None else codes, views, priors)

    @property
    def arguments(self) -> dict[str, Any]:
        """``codes``, ``views`` and, where there are any, ``priors``."""
        given = {"codes": self.codes, "views": self.views}
        return given if self.priors is None else given | {"priors": self.priors}


def seen(data: EvaluationData, split: str, studies: Studies, max_views: int, prior: bool) -> Seen:
    """Read what a model trained with ``max_views`` images of a study, and perhaps the visit before, is shown."""
    if max_views == 1 and not prior:
        return Seen(data.codes(split, studies), studies.views)
    dataset = data.dataset(split)
    samples = [dataset[number] for number in studies.numbers]
    shown = [choose_views(sample.info["views"], max_views, None) for sample in samples]
    before = prior_study_indices(dataset.infos()) if prior else [None] * len(dataset)
    visits = [before[number] for number in studies.numbers]
    earlier = [None if visit is None else dataset[visit] for visit in visits]
    asked = [(sample, number) for sample, of in zip(samples, shown, strict=True) for number in of]
    asked += [(s, _prior_view(s, studies.views[i])) for i, s in enumerate(earlier) if s is not None]
    codes = iter(data.codes_of(asked))
    stacks = [np.stack([next(codes) for _ in of]) for of in shown]
    priors = [None if s is None else (next(codes), s.info["views"][_prior_view(s, studies.views[i])])
              for i, s in enumerate(earlier)]  # fmt: skip
    views = [[sample.info["views"][number] for number in of] for sample, of in zip(samples, shown, strict=True)]
    return Seen(stacks, views, priors if prior else None)


def _prior_view(earlier: Sample, like: str) -> int:
    return choose_prior_view(earlier.info["views"], like)
