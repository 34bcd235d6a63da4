"""Columns of ``report`` and ``classify`` for images that lie outside the training data of the model."""

import sys
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from medunifier.shared.files.row_file import Row

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


class OutsideColumns:
    """``image_nll`` and ``outside_training_data`` of each study; none, and a line that says so, without a reference.

    Args:
        pipeline: the model.
        folder: its folder, for the line.

    Attributes:
        names: of the columns.
        settings: those of a run that they depend on.
    """

    def __init__(self, pipeline: "MedUnifierPipeline", folder: str) -> None:
        from medunifier.stage2_unified.generation.likelihood import how_to_make  # imports torch: not for --help

        self._pipeline, self._scored, self._outside = pipeline, 0, 0
        reference = pipeline.reference
        self.names = ["image_nll", "outside_training_data"] if reference else []
        self.settings: dict[str, Any] = {"inside": reference.limits} if reference else {}
        if reference is None:
            print(
                f"images outside the training data are not recognized: {folder} lacks the likelihood of validation "
                f"images ({how_to_make(folder)})",
                file=sys.stderr,
            )

    def rows(
        self, codes: np.ndarray | Sequence[np.ndarray], views: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[Row]:
        """Return the columns of N studies.

        Args:
            codes: (N, h, w), or N arrays (S, h, w) where studies have several images; the most unusual one counts.
            views: N view positions, or N lists of them.
        """
        reference = self._pipeline.reference
        if reference is None:
            return [{} for _ in range(len(codes))]
        stacks = [np.reshape(stack, (-1, *self._pipeline.tokenizer.grid)) for stack in codes]
        positions = chain(*([of_study] if isinstance(of_study, str) else of_study for of_study in views))
        of_images = self._pipeline.image_nll(np.concatenate(stacks), list(positions))
        of_studies = np.split(of_images, np.cumsum([len(stack) for stack in stacks])[:-1])
        nll = np.array([values[reference.distance(values).argmax()] for values in of_studies])
        outside = reference.outside(nll)
        self._scored, self._outside = self._scored + len(nll), self._outside + int(outside.sum())
        return [
            dict(zip(self.names, (round(float(value), 4), bool(unusual)), strict=True))
            for value, unusual in zip(nll, outside, strict=True)
        ]

    def print_count(self) -> None:
        """Print how many of the studies lie outside the training data, if any does."""
        if self._outside:
            print(
                f"{self._outside} of {self._scored} studies lie outside the data that the model was trained on "
                "(outside_training_data): its output for them is unreliable",
                file=sys.stderr,
            )
