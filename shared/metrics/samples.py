"""Scores sample by sample: what figures are computed from, so that they can be resampled and compared later."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunifier.shared.artifacts import atomic_file, sha256_file
from medunifier.shared.errors import UserError
from medunifier.shared.files.input_files import bare_name
from medunifier.shared.metrics.auroc import auroc, macro_auroc
from medunifier.shared.metrics.bootstrap import percentile_interval, resamples
from medunifier.shared.metrics.reports.bleu import bleu_of
from medunifier.shared.metrics.reports.clinical_f1 import f1_of


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _paired_auroc(right: np.ndarray, wrong: np.ndarray) -> float:
    truth = np.repeat([1.0, 0.0], [len(right), len(wrong)])
    return auroc(truth, np.concatenate([right, wrong]))


def _bleu(n: int) -> Callable[..., float]:
    return lambda *counts: bleu_of(*counts)[f"bleu{n}"]


def _macro_mean(values: np.ndarray) -> float:
    means = np.array([_mean(column) for column in values.T])
    return float(np.nanmean(means)) if np.isfinite(means).any() else float("nan")


KINDS: dict[str, Callable[..., float]] = {
    "mean": _mean,
    "median": lambda values: float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan"),
    "auroc": auroc,
    "macro_auroc": macro_auroc,
    "macro_auroc_gain": lambda truth, ours, others: macro_auroc(truth, ours) - macro_auroc(truth, others),
    "macro_mean": _macro_mean,
    "macro_mean_gain": lambda ours, others: _macro_mean(ours) - _macro_mean(others),
    "paired_auroc": _paired_auroc,
    "f1_micro": lambda *counts: f1_of(*counts)[0],
    "f1_macro": lambda *counts: f1_of(*counts)[1],
    **{f"bleu{n}": _bleu(n) for n in (1, 2, 3, 4)},
}
"""How a figure follows from its columns, restricted to any rows."""


@dataclass(frozen=True)
class Statistic:
    """A figure as a function of columns.

    Attributes:
        kind: a key of :data:`KINDS`.
        columns: names of its arguments.
    """

    kind: str
    columns: tuple[str, ...]


def mean_of(column: str) -> Statistic:
    """The mean of a column over the rows where it is a number."""
    return Statistic("mean", (column,))


@dataclass(frozen=True)
class Samples:
    """Rows that figures are made of.

    Attributes:
        unit: what a row is ("study", "generated image", …).
        ids: (N,) names of the rows; two systems are compared on equal ones.
        patients: (N,) whose rows are resampled together.
        columns: arrays of N rows.
        statistics: the figures, by their names in the result file.
    """

    unit: str
    ids: Sequence[str]
    patients: Sequence[str]
    columns: Mapping[str, np.ndarray]
    statistics: Mapping[str, Statistic]

    def value(self, metric: str, rows: np.ndarray | None = None) -> float:
        """A figure over all rows or over some, with repetitions."""
        statistic = self.statistics[metric]
        arrays = [self.columns[name] for name in statistic.columns]
        return float(KINDS[statistic.kind](*(arrays if rows is None else [array[rows] for array in arrays])))

    def values(self) -> dict[str, float]:
        """All figures over all rows."""
        return {metric: self.value(metric) for metric in self.statistics}

    def intervals(self, count: int, seed: int) -> dict[str, tuple[float, float]]:
        """Return the 95 % bootstrap interval by patient of every figure, over the same resamples."""
        resampled = np.array(
            [
                [self.value(metric, rows) for metric in self.statistics]
                for rows in resamples(self.patients, count, seed)
            ]
        )
        return {metric: percentile_interval(resampled[:, i]) for i, metric in enumerate(self.statistics)}


def paired_difference(a: Samples, b: Samples, metric: str, count: int, seed: int) -> dict[str, Any]:
    """Compare a figure of two systems on the same rows: the difference, its interval and its p-value.

    Both use the same resamples, so the common difficulty of a study cancels. ``p`` is two-sided: twice the fraction
    of resamples on the other side of 0, with one added to numerator and denominator, so that it is never 0.

    Args:
        a, b: with equal ids and patients, in the same order.
        metric: a figure of both.
        count, seed: number of resamples by patient, and their seed.

    Returns:
        ``{"a", "b", "difference" (a - b), "interval" [low, high] (95 %), "p"}``.

    Raises:
        ValueError: if rows or definition differ.
    """
    if list(a.ids) != list(b.ids) or list(a.patients) != list(b.patients):
        raise ValueError("a paired bootstrap needs the same rows on both sides")
    if a.statistics[metric] != b.statistics[metric]:
        raise ValueError(f"{metric} is defined otherwise on the two sides")
    rows = resamples(a.patients, count, seed)
    found = np.array([a.value(metric, chosen) - b.value(metric, chosen) for chosen in rows])
    found = found[np.isfinite(found)]
    beyond = min((found <= 0).sum(), (found >= 0).sum())
    value_a, value_b = a.value(metric), b.value(metric)
    return {
        "a": value_a,
        "b": value_b,
        "difference": value_a - value_b,
        "interval": list(percentile_interval(found)) if len(found) else [float("nan")] * 2,
        "p": float(min(1.0, 2 * (beyond + 1) / (len(found) + 1))),
    }


def save_samples(path: Path, groups: Mapping[str, Samples]) -> dict[str, Any]:
    """Write all rows into one ``.npz`` and return its record for the result file."""
    arrays: dict[str, np.ndarray] = {}
    for name, samples in groups.items():
        arrays[f"{name}/ids"] = np.array(samples.ids, dtype=str)
        arrays[f"{name}/patients"] = np.array(samples.patients, dtype=str)
        arrays |= {f"{name}/columns/{column}": values for column, values in samples.columns.items()}
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "groups": {
            name: {
                "unit": samples.unit,
                "count": len(samples.ids),
                "patients": len(set(samples.patients)),
                "statistics": {
                    metric: {"kind": statistic.kind, "columns": list(statistic.columns)}
                    for metric, statistic in samples.statistics.items()
                },
            }
            for name, samples in groups.items()
        },
    }


def load_samples(folder: Path, record: Mapping[str, Any]) -> dict[str, Samples]:
    """Read what :func:`save_samples` wrote.

    Args:
        folder: where the result file lies.
        record: its record of the samples.

    Raises:
        UserError: if the file is absent, or is not the one that was written.
    """
    path = folder / bare_name(record.get("file"), str(folder))
    if not path.is_file():
        raise UserError(f"{path} not found: it holds the scores of each sample and must lie beside its result file")
    if sha256_file(path) != record.get("sha256"):
        raise UserError(f"{path} is not the file that the result was written with (another checksum): evaluate again")
    with np.load(path, allow_pickle=False) as arrays:
        return {
            name: Samples(
                unit=group["unit"],
                ids=arrays[f"{name}/ids"].tolist(),
                patients=arrays[f"{name}/patients"].tolist(),
                columns={
                    key.removeprefix(f"{name}/columns/"): arrays[key]
                    for key in arrays.files
                    if key.startswith(f"{name}/columns/")
                },
                statistics={
                    metric: Statistic(row["kind"], tuple(row["columns"]))
                    for metric, row in group["statistics"].items()
                },
            )
            for name, group in record["groups"].items()
        }
