"""What a task hands back, and what every result file says of its circumstances."""

import hashlib
import importlib.metadata
import math
import platform
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shared.artifacts import canonical_json
from shared.metrics.samples import Samples
from stage2_unified.evaluate.report_scores import LocalScorers
from stage2_unified.evaluate.studies import JudgedData, Studies

PACKAGES = (
    "medunifier", "torch", "torchvision", "transformers", "numpy", "scipy", "scikit-learn", "torchmetrics",
    "rouge-score", "nltk", "pydicom", "pillow",
)  # fmt: skip


class Pipeline(Protocol):
    """The model under judgement: `stage2_unified.inference.MedUnifierPipeline`, or another with these methods.

    Codes are (N, h, w) integers, views N ViewPositions, reports N dicts ``{"findings", "impression"}``.
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def sections(self) -> str: ...
    def embed_images(self, codes: np.ndarray, views: list[str]) -> np.ndarray: ...
    def embed_texts(self, reports: list[dict[str, str]]) -> np.ndarray: ...
    def match(self, codes: np.ndarray, views: list[str], reports: list[dict[str, str]]) -> np.ndarray: ...
    def write_reports(self, codes: np.ndarray, views: list[str], **generate: Any) -> list[dict[str, str]]: ...
    def draw(
        self,
        reports: list[dict[str, str]],
        views: list[str],
        seed: int = 0,
        guidance: float = 2.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray: ...
    def decode(self, codes: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Judging:
    """Everything a task reads; the options are those of ``medunifier evaluate``."""

    pipeline: Pipeline
    data: JudgedData
    split: str = "test"
    limit: int = 200
    train_limit: int = 2000
    seed: int = 0
    rerank: int = 0
    prompts: str = "sentence"
    label_set: str = "all"
    guidance: float = 2.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    classifier_steps: int = 500
    variety_prompts: int = 8
    variety_images: int = 4
    feature_net: str = "random"
    feature_weights: str | None = None
    scorers: LocalScorers = LocalScorers()
    device: str | None = None


@dataclass
class TaskResult:
    """One task's outcome.

    Attributes:
        metrics: flat dotted names; ``NAME.baseline`` beside NAME is the chance or trivial value.
        details: whatever else a reader needs, as JSON values.
        pictures: (H, W) floats in [0, 1] by file stem; ``details`` speak of them by that name.
        studies: the draw that was judged, where it is one of a shard folder.
        samples: rows that figures are made of, by group; intervals and comparisons come from them.
        protocol: what two results must have in common, besides data, split, sections and rows, to be compared.
        texts: written reports by study id, kept beside the result.
    """

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    studies: Studies | None = None
    samples: dict[str, Samples] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def defined(metrics: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Metrics without those that are not finite, and the names of these: JSON has no NaN."""
    kept = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return kept, [name for name in metrics if name not in kept]


def interval(bounds: tuple[float, float]) -> list[float] | None:
    """A confidence interval as JSON; None where it is undefined."""
    return [round(bound, 6) for bound in bounds] if all(map(math.isfinite, bounds)) else None


def versions() -> dict[str, str]:
    """Python's and the libraries' that a figure may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
