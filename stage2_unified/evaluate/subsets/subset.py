"""``medunifier subset``: write the study ids or prompts of a published protocol to a file."""

import csv
import gzip
import io
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunifier.data.reports.observations import OBSERVATIONS
from medunifier.shared.artifacts import sha256_file, write_json
from medunifier.shared.config import Subcommand, parse_subcommand
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import MAX_JSON_BYTES, open_regular, too_large
from medunifier.shared.files.text import decode_text
from medunifier.stage2_unified.evaluate.results.result import digest
from medunifier.stage2_unified.evaluate.subsets.studies import EvaluationData
from medunifier.stage2_unified.inference.prompts import LABEL_SETS, findings_of, prompt_set
from medunifier.stage2_unified.model.processing.view_selection import choose_view
from medunifier.stage2_unified.model.vocabulary import view_name

PER_CLASS = 200
SUBSETS = {"5x200": "chexpert5", "8x200": "chexpert8"}

DESCRIPTION = (
    'Sample the studies of a published protocol and write their ids (under "ids") with the seed and the rule, or '
    "write a prompt set. `medunifier evaluate TASK --ids FILE` evaluates them, --prompts FILE uses the prompts."
)


def _check_out(out: str) -> None:
    if not out.endswith(".json"):
        raise ValueError(f"out must be a file NAME.json, got {out}")


@dataclass(frozen=True)
class ClassesConfig:
    """Sample equally many frontal studies of each class, in which that finding alone of the 14 is present."""

    out: str
    """FILE.json."""
    labels: str | None = None
    """CSV of labels, optionally .gz: CheXpert's train.csv, or study_id and a column for each observation."""
    data: str | None = None
    """Shard folder, in place of --labels."""
    split: str = "test"
    """Split of --data."""
    per_class: int = PER_CLASS
    """Studies of each class."""
    seed: int = 0
    """Seed of the sample."""

    def __post_init__(self) -> None:
        _check_out(self.out)
        if self.per_class < 1:
            raise ValueError(f"per_class must be at least 1, got {self.per_class}")
        if (self.labels is None) == (self.data is None):
            raise ValueError("pass either --labels FILE.csv or --data DIR")


@dataclass(frozen=True)
class PoolConfig:
    """Sample studies with a frontal image and a report, for retrieval."""

    data: str
    """Shard folder."""
    out: str
    """FILE.json."""
    split: str = "test"
    """Split of --data."""
    size: int = 0
    """Number of studies; 0 = all."""
    seed: int = 0
    """Seed of the sample."""

    def __post_init__(self) -> None:
        _check_out(self.out)
        if self.size < 0:
            raise ValueError(f"size must be at least 0, got {self.size}")


@dataclass(frozen=True)
class PromptsConfig:
    """Write the prompts of a style to a file."""

    out: str
    """FILE.json."""
    style: str = "sentence"
    """sentence, chexzero, biovil or severity."""
    label_set: str = "all"
    """Findings: all, chexpert5, chexpert8, medunifier5, rsna, or comma-separated names."""

    def __post_init__(self) -> None:
        _check_out(self.out)


SUBCOMMANDS = {
    **{
        name: Subcommand(ClassesConfig, f"{PER_CLASS} studies of each class of {label_set}: {description}")
        for name, label_set, description in (
            ("5x200", "chexpert5", "GLoRIA, MGCA, CXR-CLIP"),
            ("8x200", "chexpert8", "eight classes"),
        )
    },
    "pool": Subcommand(PoolConfig),
    "prompts": Subcommand(PromptsConfig),
}


@dataclass(frozen=True)
class Candidate:
    """A study that may be sampled.

    Attributes:
        name: its id.
        frontal: whether it has a frontal image.
        labels: ``{finding: 1 | 0 | -1}``.
    """

    name: str
    frontal: bool
    labels: Mapping[str, int]


def main(argv: Sequence[str]) -> None:
    """Run ``medunifier subset KIND …``.

    Raises:
        UserError: if a class has too few studies, or the source cannot be read.
    """
    kind, config = parse_subcommand(
        SUBCOMMANDS, argv, prog="medunifier subset", metavar="KIND", description=DESCRIPTION
    )
    if kind == "prompts":
        content = prompt_set(config.style, findings_of(config.label_set)).to_json()
        print(f"{len(content['prompts'])} findings")
    else:
        content = {"kind": kind, "seed": config.seed}
        content |= _pool(config) if kind == "pool" else _classes(config, LABEL_SETS[SUBSETS[kind]])
        content["ids_sha256"] = digest(content["ids"])
    write_json(config.out, content)
    print(f"{config.out} written")


def _pool(config: PoolConfig) -> dict[str, Any]:
    data = EvaluationData(config.data, None, config.seed)
    studies = data.studies(config.split, config.size)
    distinct = len(set(studies.text_ids.tolist()))
    print(f"{len(studies)} studies, {distinct} distinct reports")
    return {
        "rule": "a frontal image and a report; one image a study",
        "source": _shards(data, config.split),
        "distinct_reports": distinct,
        "ids": studies.ids,
    }


def _classes(config: ClassesConfig, classes: Sequence[str]) -> dict[str, Any]:
    candidates, source = _candidates(config)
    sampled = sample_classes(candidates, classes, config.per_class, config.seed)
    print(", ".join(f"{name} {len(names)}" for name, names in sampled.items()))
    return {
        "per_class": config.per_class,
        "rule": "frontal; the finding present, every other of the 14 absent or not mentioned",
        "source": source,
        "classes": sampled,
        "ids": [name for names in sampled.values() for name in names],
    }


def sample_classes(
    candidates: Sequence[Candidate], classes: Sequence[str], per_class: int, seed: int
) -> dict[str, list[str]]:
    """Sample ``per_class`` studies of each class; the result depends on the set of candidates and the seed alone.

    Raises:
        UserError: if a class has too few studies.
    """
    rng = np.random.default_rng(seed)
    sampled: dict[str, list[str]] = {}
    for finding in classes:
        eligible = sorted(c.name for c in candidates if c.frontal and _only(c.labels, finding))
        if len(eligible) < per_class:
            raise UserError(
                f"{finding} is the only finding of {len(eligible)} frontal studies, {per_class} were requested: pass "
                f"more data, or --per_class {max(len(eligible), 1)} and report it with the metric"
            )
        sampled[finding] = sorted(eligible[i] for i in rng.choice(len(eligible), per_class, replace=False))
    return sampled


def _only(labels: Mapping[str, int], finding: str) -> bool:
    """Return whether this finding is present and every other of the 14 is 0 or not mentioned."""
    return labels.get(finding) == 1 and all(labels.get(other, 0) == 0 for other in OBSERVATIONS if other != finding)


def _candidates(config: ClassesConfig) -> tuple[list[Candidate], dict[str, Any]]:
    if config.labels is not None:
        return read_labels(config.labels), {"file": Path(config.labels).name, "sha256": sha256_file(config.labels)}
    assert config.data is not None  # noqa: S101 - narrows a type
    data = EvaluationData(config.data, None, config.seed)
    if not data.has_split(config.split):
        raise UserError(f"{config.data} has no samples of split {config.split!r}")
    found = [
        Candidate(
            info["study_id"],
            view_name(info["views"][choose_view(info["views"], None)]) != "lateral",
            info["labels"],
        )
        for info in data.dataset(config.split).infos()
    ]
    return found, _shards(data, config.split)


def _shards(data: EvaluationData, split: str) -> dict[str, Any]:
    """Return the description of the data without its path."""
    described = data.describe(split, {})
    return {name: described[name] for name in ("source", "split", "sections", "manifest_sha256")}


def read_labels(path: str) -> list[Candidate]:
    """Read the studies of a label table. In CheXpert's tables each image is one, named by its path.

    Raises:
        UserError: if the file is missing or lacks columns.
    """
    try:
        with ExitStack() as stack:
            binary: Any = stack.enter_context(open_regular(path))
            if path.endswith(".gz"):
                binary = stack.enter_context(gzip.GzipFile(fileobj=binary))
            content = binary.read(MAX_JSON_BYTES + 1)
            if len(content) > MAX_JSON_BYTES:
                raise too_large(MAX_JSON_BYTES)
            reader = csv.DictReader(io.StringIO(decode_text(content), newline=""))
            columns = list(reader.fieldnames or [])
            key = next((name for name in ("Path", "study_id") if name in columns), None)
            missing = [name for name in OBSERVATIONS if name not in columns]
            if key is None or missing:
                absent = ([] if key else ["Path or study_id"]) + missing
                raise UserError(
                    f"{path} has no column {absent[0]} ({len(absent)} are missing): it is not a table of labels"
                )
            return [
                Candidate(
                    row[key],
                    "Frontal/Lateral" not in columns or row["Frontal/Lateral"] == "Frontal",
                    {name: int(float(row[name])) for name in OBSERVATIONS if (row[name] or "").strip()},
                )
                for row in reader
            ]
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of labels: {error}") from None
