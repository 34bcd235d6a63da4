"""Zero-shot classification: similarity of radiographs to positive and negative sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medunifier.stage2_unified.inference.prompts import PromptSet

if TYPE_CHECKING:
    from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


@dataclass(frozen=True)
class Scores:
    """Scores of F findings for N radiographs, (N, F) each.

    Attributes:
        similarity: cosine similarity to the positive sentences, -1 to 1.
        denial: the same for the negative sentences; NaN for a finding without any.
        preference: softmax of the two at the model's temperature (the probability of CheXzero). 0.5 = undecided.
            Not calibrated: it is not the frequency of the finding. NaN without negative sentences.
    """

    similarity: np.ndarray
    denial: np.ndarray
    preference: np.ndarray


class PromptScorer:
    """Embed the sentences once and score any number of radiographs.

    Args:
        pipeline: the model.
        prompts: the sentences of each finding.
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
        """Return the scores of (N, E) unit-norm image embeddings."""
        stated = np.stack([self._similarity(images, positive) for positive, _ in self._sides], axis=1)
        denied = np.stack([self._similarity(images, negative) for _, negative in self._sides], axis=1)
        return Scores(stated, denied, 1 / (1 + np.exp(-self._scale * (stated - denied))))

    def _similarity(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Return the (N,) similarity of (N, E) images to (P, E) sentences; NaN without sentences."""
        if not len(texts):
            return np.full(len(images), np.nan, np.float32)
        if self._combine == "max":
            return (images @ texts.T).max(axis=1)
        mean = texts.mean(axis=0)
        return images @ (mean / max(float(np.linalg.norm(mean)), 1e-12))


def _take(embedded: Iterator[np.ndarray], part: Sequence[str]) -> np.ndarray:
    embeddings = [next(embedded) for _ in part]
    return np.stack(embeddings) if embeddings else np.empty((0, 0))
