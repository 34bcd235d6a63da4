"""Interfaces of the evaluation tasks: options, context and results, and the library versions of a result file."""

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
from medunifier.stage2_unified.evaluate.subsets.model_inputs import ModelInputs, model_inputs
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData, Studies

PACKAGES = (
    "medunifier", "torch", "torchvision", "transformers", "numpy", "scipy", "scikit-learn", "torchmetrics",
    "rouge-score", "nltk", "pydicom", "pillow",
)  # fmt: skip


class Pipeline(Protocol):
    """Interface of the evaluated model (`medunifier.stage2_unified.inference.pipeline.MedUnifierPipeline`).

    Codes are (N, h, w) integers, views N ViewPositions, reports N dicts ``{"findings", "impression"}``. A model with
    ``max_views`` above 1 or ``prior`` receives the fields of
    :class:`medunifier.stage2_unified.evaluate.subsets.model_inputs.ModelInputs`.
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
    def match_all(self, codes: Any, views: Any, reports: list[dict[str, str]], priors: Any = None) -> np.ndarray: ...
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
    """Options of the tasks of the whole model, shared by :class:`EvaluationContext` and ``medunifier evaluate``."""

    split: str = "test"
    """Split to evaluate."""
    limit: int = 200
    """Number of studies sampled for a task, and so the size of the retrieval pool; 0 = all."""
    train_limit: int = 2000
    """Training studies for the classifier of findings (tokenizer, synthesis) and for finetune; 0 = all."""
    seed: int = 0
    """Seed of the sampled studies, negative pairs, generated images and the classifier."""
    rerank: int = 0
    """Number of candidates of every retrieval query that the matching head re-ranks; 0 = none."""
    prompts: str = "sentence"
    """Prompts of zero-shot: sentence ("There is edema."), chexzero ("Edema."), biovil, severity, or FILE.json."""
    label_set: str = "all"
    """Findings of zero-shot, P@K, finetune: all, chexpert5, chexpert8, medunifier5, rsna, or names with commas."""
    guidance: float = 2.0
    """Classifier-free guidance scale of the generated images; 1 = none."""
    temperature: float = 1.0
    """Sampling temperature of the generated images."""
    top_k: int | None = None
    """Sample image codes from the k most probable."""
    top_p: float | None = None
    """Nucleus sampling: sample image codes from the most probable ones with this total probability."""
    classifier_steps: int = 500
    """Training steps of the classifier of findings (synthesis, and the task tokenizer run alone)."""
    variety_prompts: int = 8
    """Number of prompts for which several images are generated, to measure diversity; 0 = none."""
    variety_images: int = 4
    """Images per prompt."""
    feature_net: str = ""
    """Feature network of rFID, FID, KID and nearest neighbours: random, inception_v3, densenet121, transformers.
    Default: random for synthesis, and no rFID."""
    feature_weights: str | None = None
    """Weights of the feature network, a file or folder; nothing is downloaded."""
    finetune: FineTuning = field(default_factory=FineTuning)
    """Recipe for fine-tuning all weights and for segmentation heads."""
    scorers: LocalScorers = field(default_factory=LocalScorers)
    """Report scorers that need local files."""
    device: str | None = None
    """torch device of the model; default: an accelerator if there is one."""


@dataclass(frozen=True)
class EvaluationContext(EvaluationOptions):
    """Options, model and data of a task, and the model's conditioning: maximum number of views, prior study."""

    pipeline: Pipeline
    data: EvaluationData
    max_views: int = 1
    prior: bool = False

    def model_inputs(self, split: str, studies: Studies) -> ModelInputs:
        """Read the model inputs of these studies."""
        return model_inputs(self.data, split, studies, self.max_views, self.prior)


@dataclass
class TaskResult:
    """Result of one task.

    Attributes:
        metrics: values by flat dotted name; ``NAME.baseline`` is the value of chance or of a trivial prediction.
        details: further results for the page, as JSON values.
        pictures: (H, W) floats in [0, 1] by file stem; ``details`` refer to them by that name.
        studies: the evaluated studies, if they come from a shard folder.
        samples: scores by sample and group, from which intervals and comparisons are computed.
        protocol: what two results must have in common to be compared, besides data, split, sections and studies.
        texts: generated reports by study id, saved beside the result.
    """

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    studies: Studies | None = None
    samples: dict[str, Samples] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def defined(metrics: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Return the finite metrics, and the names of the others, since JSON has no NaN."""
    kept = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return kept, [name for name in metrics if name not in kept]


def interval(bounds: tuple[float, float]) -> list[float] | None:
    """Return a confidence interval as JSON; None if it is undefined."""
    return [round(bound, 6) for bound in bounds] if all(map(math.isfinite, bounds)) else None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a metric may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
