"""Bootstrap intervals over patients, since studies of one patient are not independent samples."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def resamples(patients: Sequence[str], draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Row numbers of ``draws`` samples of the patients with replacement; a patient brings all of its rows.

    The same patients in the same order, draws and seed give the same rows: what two systems' scores on
    the same studies are compared on.

    Args:
        patients: (N,) the patient of each row.
        draws: how many.
        seed: of the draws.

    Raises:
        ValueError: without rows.
    """
    if not len(patients):
        raise ValueError("a bootstrap needs at least one row")
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner)
    begins = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        sampled = rng.integers(len(sizes), size=len(sizes))
        # First row of each sampled patient, repeated for its rows, plus 0, 1, … within the patient.
        ends = np.cumsum(sizes[sampled])
        within = np.arange(ends[-1]) - np.repeat(ends - sizes[sampled], sizes[sampled])
        yield order[np.repeat(begins[sampled], sizes[sampled]) + within]


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) that hold ``confidence`` of the resamples' values; NaN if over half of these are no numbers."""
    defined = values[np.isfinite(values)]
    if 2 * len(defined) < len(values):
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    patients: Sequence[str],
    draws: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic over patients sampled with replacement.

    Args:
        statistic: maps row numbers (with repetitions) to the figure; NaN where a draw leaves it undefined.
        patients: (N,) the patient of each row.
        draws: how many resamples.
        confidence: share of the resamples inside.
        seed: of the draws.

    Returns:
        (low, high); (NaN, NaN) if more than half the draws leave the statistic undefined.

    Raises:
        ValueError: without rows.
    """
    values = np.array([statistic(rows) for rows in resamples(patients, draws, seed)])
    return percentile_interval(values, confidence)
