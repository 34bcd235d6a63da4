"""``medunifier evaluate external-embeddings``: evaluate retrieval with the embeddings of another system."""

import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from medunifier.shared.artifacts import sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import open_regular
from medunifier.stage2_unified.evaluate.results.files import print_metrics, write_result
from medunifier.stage2_unified.evaluate.results.result import TaskResult
from medunifier.stage2_unified.evaluate.scores.retrieval import Pool, score_retrieval
from medunifier.stage2_unified.model.processing.report_codec import normalise_report

DESCRIPTION = (
    "Evaluate retrieval with the embeddings of any system. --embeddings is a NumPy .npz with the arrays image "
    "(N, D) and text (N, D), row i of both from study i; cosine similarity is used. Optional arrays of N rows: "
    "texts (the reports; equal ones are one candidate), ids, patients (intervals resample patients), classes (P@K by "
    'class; "" = none). Without texts every report is a separate candidate.'
)
KNOWN = ("image", "text", "texts", "ids", "patients", "classes")


@dataclass(frozen=True)
class ExternalEmbeddingsConfig:
    """Evaluate retrieval with the embeddings of any system."""

    embeddings: str
    """FILE.npz: image (N, D), text (N, D); optionally texts, ids, patients, classes (N,)."""
    out: str
    """Result file, NAME.json; the page NAME.html is written beside it."""
    seed: int = 0
    """Seed of the bootstrap."""
    bootstrap: int = 200
    """Bootstrap resamples of the patients for an interval."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if self.bootstrap < 2:
            raise ValueError(f"bootstrap must be at least 2, got {self.bootstrap}")


def run(config: ExternalEmbeddingsConfig, command: str) -> None:
    """Evaluate the embeddings and write the result, which records ``command``.

    Raises:
        UserError: for an invalid file.
    """
    arrays = read_embeddings(config.embeddings)
    count = len(arrays["image"])
    notes = []
    for name, note in {
        "texts": "No reports passed: every text is a separate candidate, so identical reports lower every metric.",
        "patients": "No patients passed: intervals treat each study as a separate patient.",
    }.items():
        if name not in arrays:
            notes.append(note)
    ids = list(map(str, arrays.get("ids", np.arange(count))))
    texts = [normalise_report(str(text)) for text in arrays["texts"]] if "texts" in arrays else ids
    identity = np.unique(texts, return_inverse=True)[1]
    if len(set(texts)) < 2:
        raise UserError(
            f"all {count} studies of {config.embeddings} share one report: retrieval needs two distinct reports"
        )
    patients = list(map(str, arrays["patients"])) if "patients" in arrays else ids
    classes = np.array([str(name) for name in arrays["classes"]]) if "classes" in arrays else None
    pool = Pool(ids, patients, identity, identity, classes)
    image, text = (_unit(arrays[name]) for name in ("image", "text"))
    scores = score_retrieval(image @ text.T, pool)
    data: dict[str, Any] = {
        "path": config.embeddings,
        # Of the pool, not of the file, which differs between systems evaluated on the same studies.
        "manifest_sha256": pool.protocol()["pool_sha256"],
        "kind": "embeddings",
        "source": "embeddings",
        "sections": "unspecified",
        "split": "unspecified",
        "counts": {"unspecified": count},
        "evaluated": {"retrieval": {"studies": count, "patients": len(set(patients)), "ids": ids}},
    }
    content = write_result(
        config.out,
        task="retrieval",
        results={
            "retrieval": TaskResult(scores.metrics, scores.details, samples=scores.samples, protocol=pool.protocol())
        },
        data=data,
        model={"embeddings": config.embeddings, "embeddings SHA-256": sha256_file(config.embeddings)},
        command=command,
        seed=config.seed,
        bootstrap=config.bootstrap,
        notes=notes,
    )
    print_metrics(content, config.out)


def read_embeddings(path: str) -> dict[str, np.ndarray]:
    """Read and check the arrays.

    Raises:
        UserError: if the file is missing or no .npz, lacks an array, or its arrays do not match each other.
    """
    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as plain NumPy arrays (.npz, no pickles): {error}") from None
    missing = [name for name in ("image", "text") if name not in arrays]
    if missing:
        raise UserError(
            f"{path} has no array {' and no array '.join(missing)}; it has: {', '.join(arrays) or 'none'}"
        )
    unknown = [name for name in arrays if name not in KNOWN]
    if unknown:
        raise UserError(f"{path} has an unknown array {unknown[0]!r}; expected: {', '.join(KNOWN)}")
    image, text = arrays["image"], arrays["text"]
    if image.ndim != 2 or image.shape != text.shape or len(image) < 2:
        raise UserError(
            f"{path}: image is {image.shape}, text {text.shape}; expected one (N, D) for both, N of 2 or more"
        )
    for name in ("image", "text"):
        if not np.issubdtype(arrays[name].dtype, np.floating) or not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: {name} must hold finite floating-point numbers, got {arrays[name].dtype}")
        if not np.linalg.norm(arrays[name].astype(np.float64), axis=1).all():
            raise UserError(f"{path}: {name} has a row of zeros, whose cosine similarity is undefined")
    for name in KNOWN[2:]:
        if name in arrays and arrays[name].shape != (len(image),):
            raise UserError(f"{path}: {name} is {arrays[name].shape}, expected ({len(image)},), one entry per study")
    if "ids" in arrays and len(set(arrays["ids"].tolist())) < len(image):
        raise UserError(f"{path}: ids holds a study more than once")
    return arrays


def _unit(embeddings: np.ndarray) -> np.ndarray:
    embeddings = embeddings.astype(np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
