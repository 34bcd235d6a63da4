"""``medunifier evaluate compare A.json B.json``: compare two results on the same studies by a paired bootstrap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier.shared.artifacts import read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.metrics.samples import load_samples, paired_difference

DESCRIPTION = (
    "Compare two results on the same data: every metric with scores by sample is tested by a paired bootstrap over "
    "patients. Results that differ in data, split, sections, studies, labels or feature network are refused. p is "
    "not corrected for the number of metrics."
)


@dataclass(frozen=True)
class CompareConfig:
    """Compare two results."""

    a: str
    """First result, A.json; its A-samples.npz must be in the same folder."""
    b: str
    """Second result, B.json, with its B-samples.npz."""
    out: str | None = None
    """JSON file for the comparison."""
    bootstrap: int = 2000
    """Bootstrap resamples of the patients."""
    seed: int = 0
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        if self.bootstrap < 2:
            raise ValueError(f"bootstrap must be at least 2, got {self.bootstrap}")
        if self.out is not None and not self.out.endswith(".json"):
            raise ValueError(f"out must be a file NAME.json, got {self.out}")


def run(config: CompareConfig) -> None:
    """Compare two results, print a table, and write it if ``out`` is set.

    Raises:
        UserError: for results that are not comparable; it names the first difference.
    """
    content = compare(config.a, config.b, config.bootstrap, config.seed)
    print(f"{'':44} {'A':>8} {'B':>8} {'A - B':>9}   95 % interval        p")
    for name, row in content["figures"].items():
        low, high = row["interval"]
        print(
            f"{name:44} {row['a']:8.4f} {row['b']:8.4f} {row['difference']:+9.4f}   "
            f"[{low:+.4f}, {high:+.4f}]  {row['p']:.4f}"
        )
    for name, why in content["not_tested"].items():
        print(f"{name}: {why}")
    if config.out is not None:
        write_json(config.out, content)
        print(f"{config.out} written")


def compare(a: str, b: str, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare two result files metric by metric.

    Returns:
        ``{"a", "b", "figures": {name: {"a", "b", "difference", "interval", "p"}}, "not_tested": {name: why},
        "resamples", "seed"}``.

    Raises:
        UserError: if a file is no result, has no scores by sample, or the two are not comparable.
    """
    results = [_read(path) for path in (a, b)]
    _check_comparable((a, b), results)
    groups = [
        load_samples(Path(path).parent, result["samples"]) for path, result in zip((a, b), results, strict=True)
    ]
    figures: dict[str, Any] = {}
    not_tested: dict[str, str] = {}
    for name in sorted(groups[0].keys() & groups[1].keys()):
        sides = groups[0][name], groups[1][name]
        if list(sides[0].ids) != list(sides[1].ids) or list(sides[0].patients) != list(sides[1].patients):
            # Generated images of two systems have different names, so there are no pairs to resample.
            for metric in sides[0].statistics.keys() & sides[1].statistics.keys():
                not_tested[metric] = f"the samples of the two results differ ({sides[0].unit})"
            continue
        for metric in sides[0].statistics:
            if metric not in sides[1].statistics:
                not_tested[metric] = "only one of the two results has it"
            elif sides[0].statistics[metric] != sides[1].statistics[metric]:
                not_tested[metric] = "the two results define it differently"
            else:
                row = paired_difference(*sides, metric, resamples, seed)
                if all(map(math.isfinite, (row["a"], row["b"], *row["interval"]))):
                    figures[metric] = row
                else:
                    not_tested[metric] = "it is undefined on one of the two"
    common = results[0]["metrics"].keys() & results[1]["metrics"].keys()
    for metric in sorted(common - figures.keys() - not_tested.keys()):
        if not metric.endswith(".baseline"):
            not_tested[metric] = "it is not computed from scores by sample"
    if not figures:
        raise UserError(f"{a} and {b} have no metric in common that can be tested")
    return {"a": a, "b": b, "figures": figures, "not_tested": not_tested, "resamples": resamples, "seed": seed}


def _read(path: str) -> dict[str, Any]:
    result = read_json(path, "a result of medunifier evaluate")
    if not isinstance(result, dict) or not {"metrics", "data", "protocol"} <= result.keys():
        raise UserError(f"{path} is no result of `medunifier evaluate`, or too old to be compared")
    if "evaluated" not in result["data"]:
        raise UserError(f"{path} does not list the evaluated studies (data.evaluated): evaluate the model again")
    if "samples" not in result:
        raise UserError(f"{path} has no scores by sample: its tasks ({result['task']}) cannot be compared this way")
    return result


def _check_comparable(paths: Sequence[str], results: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError that names the first difference in data or protocol between two results."""
    a, b = (result["data"] for result in results)
    common = [task for task in results[0]["protocol"] if task in results[1]["protocol"]]
    if not common:
        tasks = [", ".join(result["protocol"]) for result in results]
        raise UserError(f"not comparable: {paths[0]} evaluates {tasks[0]}, {paths[1]} evaluates {tasks[1]}")
    for key, what in {
        "manifest_sha256": "different data",
        "split": "different splits",
        "sections": "different sections of the reports",
    }.items():
        if a[key] != b[key]:
            values = [str(value)[:60] for value in (a[key], b[key])]
            raise UserError(f"not comparable: {what} ({key}: {values[0]} in {paths[0]}, {values[1]} in {paths[1]})")
    for task in common:
        evaluated = [data["evaluated"].get(task, {}).get("ids") for data in (a, b)]
        if evaluated[0] != evaluated[1]:
            counts = [0 if ids is None else len(ids) for ids in evaluated]
            raise UserError(
                f"not comparable: {task} was evaluated on different studies ({counts[0]} in {paths[0]}, "
                f"{counts[1]} in {paths[1]}): use the same --limit and --seed, or --ids"
            )
        for key in sorted({*results[0]["protocol"][task], *results[1]["protocol"][task]}):
            values = [result["protocol"][task].get(key) for result in results]
            if values[0] != values[1]:
                raise UserError(
                    f"not comparable: {task} was evaluated with a different {key.replace('_', ' ')}: "
                    f"{_short(values[0])} in {paths[0]}, {_short(values[1])} in {paths[1]}"
                )


def _short(value: Any) -> str:
    text = str(value.get("name", value)) if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
