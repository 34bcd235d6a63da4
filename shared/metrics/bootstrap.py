"""Bootstrap intervals over patients, since studies of one patient are not independent samples."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def resamples(patients: Sequence[str], count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the row numbers of ``count`` bootstrap samples of patients; a sampled patient contributes all its rows.

    The rows depend only on the arguments, so that two systems' scores on the same studies can be compared in pairs.

    Args:
        patients: (N,) the patient of each row.
        count: number of resamples.
        seed: of the random generator.

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
    for _ in range(count):
        sampled = rng.integers(len(sizes), size=len(sizes))
        # First row of each sampled patient, repeated for its rows, plus 0, 1, … within the patient.
        ends = np.cumsum(sizes[sampled])
        within = np.arange(ends[-1]) - np.repeat(ends - sizes[sampled], sizes[sampled])
        yield order[np.repeat(begins[sampled], sizes[sampled]) + within]


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return (low, high), which contain ``confidence`` of the finite values; NaN if over half are not finite."""
    defined = values[np.isfinite(values)]
    if 2 * len(defined) < len(values):
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    patients: Sequence[str],
    count: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic over patients sampled with replacement.

    Args:
        statistic: maps row numbers (with repetitions) to the figure; NaN where it is undefined for a resample.
        patients: (N,) the patient of each row.
        count: number of resamples.
        confidence: fraction of the resamples inside the interval.
        seed: of the random generator.

    Returns:
        (low, high); (NaN, NaN) if the statistic is undefined for more than half of the resamples.

    Raises:
        ValueError: without rows.
    """
    values = np.array([statistic(rows) for rows in resamples(patients, count, seed)])
    return percentile_interval(values, confidence)
