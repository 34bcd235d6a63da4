"""Model inputs of the evaluated studies: the images of each and, if the model takes one, the prior study."""

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
class ModelInputs:
    """Inputs of N studies in the form that a pipeline takes.

    Attributes:
        codes: (N, h, w), or N arrays (S, h, w) of S images each.
        views: N view positions, or N lists of S view positions.
        priors: (codes, view position) of an image of each prior study, None for a study without one. None as a whole
            if the model takes no prior.
    """

    codes: np.ndarray | list[np.ndarray]
    views: list[str] | list[list[str]]
    priors: list[Prior | None] | None = None

    def select(self, numbers: Sequence[int] | np.ndarray) -> "ModelInputs":
        """Return the inputs of the studies ``numbers``, in that order."""
        codes = self.codes[np.asarray(numbers)] if isinstance(self.codes, np.ndarray) else None
        views: Any = [self.views[i] for i in numbers]
        priors = None if self.priors is None else [self.priors[i] for i in numbers]
        return ModelInputs([self.codes[i] for i in numbers] if codes is None else codes, views, priors)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a pipeline: ``codes``, ``views`` and, unless None, ``priors``."""
        arguments = {"codes": self.codes, "views": self.views}
        return arguments if self.priors is None else arguments | {"priors": self.priors}


def model_inputs(data: EvaluationData, split: str, studies: Studies, max_views: int, prior: bool) -> ModelInputs:
    """Read the inputs of a model trained with up to ``max_views`` images a study and, if ``prior``, a prior study."""
    if max_views == 1 and not prior:
        return ModelInputs(data.codes(split, studies), studies.views)
    dataset = data.dataset(split)
    samples = [dataset[number] for number in studies.numbers]
    selected = [choose_views(sample.info["views"], max_views, None) for sample in samples]
    prior_numbers = prior_study_indices(dataset.infos()) if prior else [None] * len(dataset)
    prior_samples = [
        None if (number := prior_numbers[study]) is None else dataset[number] for study in studies.numbers
    ]
    prior_views = [
        None if sample is None else choose_prior_view(sample.info["views"], view)
        for sample, view in zip(prior_samples, studies.views, strict=True)
    ]
    images: list[tuple[Sample, int]] = [
        (sample, number) for sample, numbers in zip(samples, selected, strict=True) for number in numbers
    ]
    images += [
        (sample, number)
        for sample, number in zip(prior_samples, prior_views, strict=True)
        if sample is not None and number is not None
    ]
    codes = iter(data.codes_of(images))
    stacks = [np.stack([next(codes) for _ in numbers]) for numbers in selected]
    priors = [
        None if sample is None or number is None else (next(codes), sample.info["views"][number])
        for sample, number in zip(prior_samples, prior_views, strict=True)
    ]
    views = [
        [sample.info["views"][number] for number in numbers]
        for sample, numbers in zip(samples, selected, strict=True)
    ]
    return ModelInputs(stacks, views, priors if prior else None)
