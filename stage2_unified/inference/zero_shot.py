"""Similarity of radiographs to sentences: what zero-shot classification decides by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medunifier.stage2_unified.inference.prompts import PromptSet

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


@dataclass(frozen=True)
class Scores:
    """What F findings' sentences say of N radiographs, (N, F) each.

    Attributes:
        similarity: cosine of the radiograph and the statements, -1 to 1.
        denial: the same for the denials; NaN where a finding has none.
        preference: softmax of the two at the model's temperature (CheXzero's probability): how much rather the
            radiograph goes with the statement than with its denial. 0.5 = undecided. Not calibrated: no share of
            radiographs with this value has the finding. NaN without denials.
    """

    similarity: np.ndarray
    denial: np.ndarray
    preference: np.ndarray


class PromptScorer:
    """Sentences embedded once, any number of radiographs compared with them.

    Args:
        pipeline: the model.
        prompts: sentences of each finding.
    """

    def __init__(self, pipeline: "MedUnifierPipeline", prompts: PromptSet) -> None:
        self.findings = list(prompts.prompts)
        self._combine: Literal["mean", "max"] = prompts.combine
        self._scale = float(pipeline.model.logit_scale.detach().exp())
        section = pipeline.processor.codec.sections[0]
        sides = list(prompts.prompts.values())
        sentences = [sentence for side in sides for part in side for sentence in part]
        embedded = iter(pipeline.embed_texts([{section: sentence} for sentence in sentences]))
        self._sides = [tuple(_take(embedded, part) for part in side) for side in sides]

    def __call__(self, images: np.ndarray) -> Scores:
        """(N, E) unit-norm image embeddings -> scores."""
        stated = np.stack([self._similarity(images, positive) for positive, _ in self._sides], axis=1)
        denied = np.stack([self._similarity(images, negative) for _, negative in self._sides], axis=1)
        return Scores(stated, denied, 1 / (1 + np.exp(-self._scale * (stated - denied))))

    def _similarity(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """(N,) of (N, E) images and (P, E) sentences of one side; NaN if there are no sentences."""
        if not len(texts):
            return np.full(len(images), np.nan, np.float32)
        if self._combine == "max":
            return (images @ texts.T).max(axis=1)
        mean = texts.mean(axis=0)
        return images @ (mean / max(float(np.linalg.norm(mean)), 1e-12))


def _take(embedded: Iterator[np.ndarray], part: Sequence[str]) -> np.ndarray:
    rows = [next(embedded) for _ in part]
    return np.stack(rows) if rows else np.empty((0, 0))
