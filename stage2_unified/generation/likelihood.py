"""Likelihood of radiographs under the model, and whether an image lies outside the data that it was trained on.

The score is the mean negative log-likelihood (NLL) of an image's codes without a report (``<uncond>``), in nats per
code: the model's own objective of image generation, computed from the codes alone. An unusual image does not always
have a low likelihood: that of a smooth one may exceed that of the training data (Nalisnick et al., "Do deep
generative models know what they don't know?", ICLR 2019). So the distance to the median of validation images counts,
on either side (typicality: Nalisnick et al., arXiv:1906.02994, 2019): an image lies outside if its distance is larger
than that of 99 % of the validation images.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medunifier.shared.artifacts import FORMAT_VERSION, read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration, at_positions
from medunifier.stage2_unified.model.sequences import ImageSpans
from medunifier.stage2_unified.model.vocabulary import UNCOND, VIEWS, view_name

REFERENCE = "likelihood.json"
"""File of a model folder with the :class:`LikelihoodReference`."""
OUTSIDE_PERCENTILE = 99
LEAST_IMAGES = 100
"""Images of a reference: of fewer, the 99th percentile is that of the most unusual image or two."""
_CHUNK = 4096
"""Positions whose logits are in memory at the same time."""


@torch.inference_mode()
def image_nll(model: MedUnifierForConditionalGeneration, images: ImageSpans) -> Tensor:
    """Return the (B,) mean NLL of each image's codes without a report, in nats per code; at chance ln K.

    Args:
        model: in evaluation mode.
        images: one image a study.
    """
    codes = images.codes[:, 0]  # (B, N)
    prompt = torch.full_like(images.view, model.vocabulary[UNCOND])  # (B, 1)
    text_first, boi = model.sequences.text_first(prompt, torch.ones_like(prompt[:, 0]), images)
    hidden = model.encode_text_first(text_first.ids, text_first.codes)  # (B, L, H)
    # <boi> predicts the first code, a code the next.
    states = at_positions(hidden, boi + torch.arange(codes.shape[1], device=boi.device))  # (B, N, H)
    rows = max(1, _CHUNK // codes.shape[1])
    return torch.cat([
        cross_entropy(model.image_logits(part).float().transpose(1, 2), target, reduction="none").mean(dim=1)
        for part, target in zip(states.split(rows), codes.split(rows), strict=True)
    ])  # fmt: skip


def candidate_views(view: str) -> tuple[str, ...]:
    """Return the view positions under which an image is scored: its own, or all if it is unknown.

    The least NLL counts: an image is not unusual because its file does not state the view.
    """
    return (view,) if view_name(view) != "other" else VIEWS


@dataclass(frozen=True)
class LikelihoodReference:
    """Likelihood of validation images, which those of other images are compared with.

    Attributes:
        model: fingerprint of the model that it was computed with.
        source: data source of the images ("mimic-cxr", "phantom", …).
        split: of the images.
        images: their number, at least :data:`LEAST_IMAGES`.
        median: NLL of half of them is lower, in nats per code.
        distances: percentiles 0, 1, …, 100 of the absolute difference between NLL and median.
    """

    model: str
    source: str
    split: str
    images: int
    median: float
    distances: tuple[float, ...]

    @classmethod
    def of(cls, nll: np.ndarray, model: str, source: str, split: str) -> "LikelihoodReference":
        """Return the reference of (N,) NLL of validation images.

        Raises:
            UserError: if there are fewer than :data:`LEAST_IMAGES`.
        """
        if len(nll) < LEAST_IMAGES:
            raise UserError(
                f"the {split} split has {len(nll)} images, but at least {LEAST_IMAGES} are needed for the "
                f"{OUTSIDE_PERCENTILE}th percentile of their likelihood: choose a larger split"
            )
        median = float(np.median(nll))
        distances = np.percentile(np.abs(nll - median), range(101)).tolist()
        return cls(model, source, split, len(nll), median, tuple(distances))

    def distance(self, nll: np.ndarray) -> np.ndarray:
        """Return how far NLL are from the median, in nats per code: the score of images outside the training data."""
        return np.abs(nll - self.median)

    def outside(self, nll: np.ndarray) -> np.ndarray:
        """Return whether images of these NLL lie outside the training data: about 1 % of validation images do."""
        return self.distance(nll) > self.distances[OUTSIDE_PERCENTILE]

    @property
    def limits(self) -> list[float]:
        """The NLL between which images count as training data, in nats per code."""
        limit = self.distances[OUTSIDE_PERCENTILE]
        return [round(self.median - limit, 4), round(self.median + limit, 4)]

    def summary(self, folder: str | Path) -> str:
        """Return a line on the file that was written."""
        low, high = self.limits
        return (
            f"{Path(folder) / REFERENCE}: {self.images} images of the {self.split} split, median {self.median:.3f} "
            f"nats per code; images below {low:.3f} or above {high:.3f} lie outside the training data"
        )

    def save(self, folder: str | Path) -> None:
        """Write it into a model folder, atomically."""
        write_json(Path(folder) / REFERENCE, {"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: str | Path, model: str) -> "LikelihoodReference | None":
        """Read the reference of a model folder; None if it has none.

        Args:
            folder: the model folder.
            model: fingerprint of its model.

        Raises:
            UserError: if the file is damaged, or was computed with another model.
        """
        path = Path(folder) / REFERENCE
        if not path.exists():
            return None
        content: dict[str, Any] = read_json(path, "the likelihood of validation images")
        again = f"remove it, or make it again: {how_to_make(folder)}"
        if content.pop("format_version", None) != FORMAT_VERSION:
            raise UserError(f"{path} was written by another version of medunifier: {again}")
        kinds = {"model": str, "source": str, "split": str, "images": int, "median": float, "distances": list}
        if content.keys() != kinds.keys() or any(type(content[name]) is not kind for name, kind in kinds.items()):
            raise UserError(f"{path} is damaged: expected {', '.join(kinds)}; {again}")
        distances = content["distances"]
        numbers = [content["median"], *distances]
        finite = all(type(value) is float and math.isfinite(value) for value in numbers)
        if not finite or len(distances) != 101 or distances != sorted(distances) or distances[0] < 0:
            raise UserError(f"{path} is damaged: expected a median and 101 increasing percentiles; {again}")
        if content["model"] != model:
            raise UserError(f"{path} was computed with model {content['model'][:12]}, not {model[:12]}: {again}")
        return cls(**content | {"distances": tuple(distances)})


def how_to_make(folder: str | Path) -> str:
    """Return the command that writes the reference of a model folder."""
    return f"medunifier calibrate --model {folder} --data SHARDS"
