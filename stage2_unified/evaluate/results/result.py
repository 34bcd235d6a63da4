"""What a task hands back, and what every result file says of its circumstances."""

import hashlib
import importlib.metadata
import math
import platform
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from medunifier.shared.artifacts import canonical_json
from medunifier.shared.metrics.samples import Samples
from medunifier.stage2_unified.evaluate.classifiers.heads import FineTuning
from medunifier.stage2_unified.evaluate.scores.reports import LocalScorers
from medunifier.stage2_unified.evaluate.subsets.model_inputs import Seen, seen
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, Studies

PACKAGES = (
    "medunifier", "torch", "torchvision", "transformers", "numpy", "scipy", "scikit-learn", "torchmetrics",
    "rouge-score", "nltk", "pydicom", "pillow",
)  # fmt: skip


class Pipeline(Protocol):
    """The model under judgement: `medunifier.stage2_unified.inference.pipeline.MedUnifierPipeline`, or another with these methods.

    Codes are (N, h, w) integers, views N ViewPositions, reports N dicts ``{"findings", "impression"}``. One with
    ``max_views`` above 1 or ``prior`` is given what :class:`medunifier.stage2_unified.evaluate.subsets.model_inputs.Seen` holds.
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def sections(self) -> str: ...
    def embed_images(self, codes: Any, views: Any, priors: Any = None) -> np.ndarray: ...
    def embed_texts(self, reports: list[dict[str, str]]) -> np.ndarray: ...
    def match(self, codes: Any, views: Any, reports: list[dict[str, str]], priors: Any = None) -> np.ndarray: ...
    def write_reports(self, codes: Any, views: Any, priors: Any = None, **generate: Any) -> list[dict[str, str]]: ...
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
    def image_backbone(self, seed: int | None = None) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What a task of the whole model may be told: fields of :class:`EvaluationContext`, options of ``medunifier evaluate``."""

    split: str = "test"
    """Which studies are judged."""
    limit: int = 200
    """Studies that are drawn for a task; 0 = all. The size of retrieval's pool."""
    train_limit: int = 2000
    """Training studies for the judge of findings (tokenizer, synthesis) and for finetune; 0 = all."""
    seed: int = 0
    """Of every draw: studies, wrong pairs, generated images, the classifier."""
    rerank: int = 0
    """Candidates of every retrieval query that the matching head puts in its order; 0 = none."""
    prompts: str = "sentence"
    """Of zero-shot classification: sentence ("There is edema."), chexzero ("Edema."), biovil, severity, FILE.json."""
    label_set: str = "all"
    """Findings of zero-shot, P@K and finetune: all, chexpert5, chexpert8, medunifier5, rsna, or names with commas."""
    guidance: float = 2.0
    """Classifier-free guidance of the drawn images; 1 = none."""
    temperature: float = 1.0
    """Of the drawn images."""
    top_k: int | None = None
    """Draw image codes from the k most probable alone."""
    top_p: float | None = None
    """Draw image codes from the most probable that make up this share."""
    classifier_steps: int = 500
    """Training steps of the judge of findings (synthesis, and the tokenizer when it is judged alone)."""
    variety_prompts: int = 8
    """Prompts of which several images are drawn, to see how much they vary; 0 = none."""
    variety_images: int = 4
    """Images of each."""
    feature_net: str = ""
    """Net of rFID, FID, KID and neighbours: random, inception_v3, densenet121, transformers. Unnamed: random for
    synthesis, and no rFID."""
    feature_weights: str | None = None
    """Its file or folder; nothing is downloaded."""
    finetune: FineTuning = field(default_factory=FineTuning)
    """Training of the whole network, and of heads on masks."""
    scorers: LocalScorers = field(default_factory=LocalScorers)
    """Report scorers whose files are yours."""
    device: str | None = None
    """Where the model runs; an accelerator if there is one."""


@dataclass(frozen=True)
class EvaluationContext(EvaluationOptions):
    """Everything a task reads."""

    pipeline: Pipeline
    data: EvaluationData
    max_views: int = 1
    prior: bool = False

    def seen(self, split: str, studies: Studies) -> Seen:
        """What the model is shown of these studies."""
        return seen(self.data, split, studies, self.max_views, self.prior)


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
