"""``medunifier evaluate --draw …``: subsets and prompts of published protocols, as files that can be published."""

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from data.observations import OBSERVATIONS
from shared.artifacts import sha256_file, write_json
from shared.config import parse_config
from shared.errors import UserError
from stage2_unified.evaluate.prompts import LABEL_SETS, findings_of, prompt_set
from stage2_unified.evaluate.result import digest
from stage2_unified.evaluate.studies import JudgedData
from stage2_unified.view_selection import choose_view
from stage2_unified.vocabulary import view_name

PER_CLASS = 200
SUBSETS = {"5x200": "chexpert5", "8x200": "chexpert8"}

DESCRIPTION = (
    "Draw what a protocol is judged on and write it down, with its seed. 5x200 and 8x200: so many studies of each "
    "class, frontal, with exactly that finding present and every other of the 14 absent or not mentioned; "
    "from --labels (CheXpert's train.csv, or a CSV with study_id and the observations) or --data (a shard folder). "
    'pool: studies for retrieval, from --data. prompts: the sentences of a style. The file has the ids under "ids"; '
    "`medunifier evaluate TASK --ids FILE` judges on them, --prompts FILE reads a prompt set."
)


@dataclass(frozen=True)
class DrawConfig:
    """Draw what a protocol is judged on."""

    draw: Literal["5x200", "8x200", "pool", "prompts"]
    """What is drawn."""
    out: str
    """FILE.json."""
    labels: str | None = None
    """CSV (may be .gz) of labels: CheXpert's train.csv, or study_id with the observations' columns."""
    data: str | None = None
    """Shard folder, in place of --labels."""
    split: str = "test"
    """Of --data."""
    per_class: int = PER_CLASS
    """Studies of each class."""
    size: int = 0
    """Studies of a pool; 0 = all."""
    seed: int = 0
    """Of the draw."""
    style: str = "sentence"
    """Of prompts: sentence, chexzero, biovil, severity."""
    label_set: str = "all"
    """Findings of prompts: all, chexpert5, chexpert8, medunifier5, rsna, or names with commas."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")
        if self.per_class < 1 or self.size < 0:
            raise ValueError("per_class must be at least 1, size at least 0")
        if self.draw in SUBSETS and (self.labels is None) == (self.data is None):
            raise ValueError(f"{self.draw} needs either --labels FILE.csv or --data DIR")
        if self.draw == "pool" and (self.data is None or self.labels is not None):
            raise ValueError("a pool needs --data DIR, and no --labels")


@dataclass(frozen=True)
class Candidate:
    """A study that may be drawn.

    Attributes:
        name: its id.
        frontal: whether it has a frontal image.
        labels: ``{finding: 1 | 0 | -1}``.
    """

    name: str
    frontal: bool
    labels: Mapping[str, int]


def main(argv: Sequence[str]) -> None:
    """Draw and write.

    Raises:
        UserError: if there are too few studies of a class, or the source cannot be read.
    """
    config = parse_config(DrawConfig, argv, prog="medunifier evaluate --draw", description=DESCRIPTION)
    content: dict[str, Any] = {"kind": config.draw, "seed": config.seed}
    if config.draw == "prompts":
        content = prompt_set(config.style, findings_of(config.label_set)).to_json()
        print(f"{len(content['prompts'])} findings")
    elif config.draw == "pool":
        assert config.data is not None
        data = JudgedData(config.data, None, config.seed)
        studies = data.studies(config.split, config.size)
        content |= {"rule": "a frontal image and a report; one image a study"}
        content |= {"source": _shards(data, config.split), "distinct_reports": len(set(studies.text_ids.tolist()))}
        content["ids"] = studies.ids
        print(f"{len(studies)} studies, {content['distinct_reports']} distinct reports")
    else:
        candidates, source = _candidates(config)
        classes = LABEL_SETS[SUBSETS[config.draw]]
        drawn = draw_classes(candidates, classes, config.per_class, config.seed)
        content |= {
            "per_class": config.per_class,
            "rule": "frontal; the finding present, every other of the 14 absent or not mentioned",
            "source": source,
            "classes": drawn,
            "ids": [name for names in drawn.values() for name in names],
        }
        print(", ".join(f"{name} {len(names)}" for name, names in drawn.items()))
    if "ids" in content:
        content["ids_sha256"] = digest(content["ids"])
    write_json(config.out, content)
    print(f"{config.out} written")


def draw_classes(
    candidates: Sequence[Candidate], classes: Sequence[str], per_class: int, seed: int
) -> dict[str, list[str]]:
    """So many studies of each class, a pure function of the candidates' set and the seed.

    Raises:
        UserError: if a class has too few.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[str]] = {}
    for finding in classes:
        fit = sorted(c.name for c in candidates if c.frontal and _only(c.labels, finding))
        if len(fit) < per_class:
            raise UserError(
                f"{finding} is the only finding of {len(fit)} frontal studies, {per_class} were asked for: give more "
                f"data, or --per_class {max(len(fit), 1)} and say so wherever the figure stands"
            )
        drawn[finding] = sorted(fit[i] for i in rng.choice(len(fit), per_class, replace=False))
    return drawn


def _only(labels: Mapping[str, int], finding: str) -> bool:
    """Whether this one is present and every other of the 14 is 0 or not mentioned."""
    return labels.get(finding) == 1 and all(labels.get(other, 0) == 0 for other in OBSERVATIONS if other != finding)


def _candidates(config: DrawConfig) -> tuple[list[Candidate], dict[str, Any]]:
    if config.labels is not None:
        return read_labels(config.labels), {"file": Path(config.labels).name, "sha256": sha256_file(config.labels)}
    assert config.data is not None
    data = JudgedData(config.data, None, config.seed)
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


def _shards(data: JudgedData, split: str) -> dict[str, Any]:
    """Which data, without this machine's path."""
    described = data.describe(split, {})
    return {name: described[name] for name in ("source", "split", "sections", "manifest_sha256")}


def read_labels(path: str) -> list[Candidate]:
    """Studies of a label table; of CheXpert's, every image is one, by its path, and frontal by its column.

    Raises:
        UserError: if the file is absent or lacks columns.
    """
    opened: Callable[..., TextIO] = gzip.open if path.endswith(".gz") else open  # type: ignore[assignment]
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            key = next((name for name in ("Path", "study_id") if name in columns), None)
            missing = [name for name in OBSERVATIONS if name not in columns]
            if key is None or missing:
                absent = ([] if key else ["Path or study_id"]) + missing
                raise UserError(
                    f"{path} has no column {absent[0]} ({len(absent)} are missing); it is no table of labels"
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
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of labels: {error}") from None
