"""Bootstrap intervals that resample patients, since the studies of one patient are no independent draws."""

from collections.abc import Callable, Sequence

import numpy as np


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    patients: Sequence[str],
    draws: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over patients drawn with replacement.

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
    if not len(patients):
        raise ValueError("a bootstrap needs at least one row")
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    rng = np.random.default_rng(seed)
    values = np.array(
        [statistic(np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])) for _ in range(draws)]
    )
    defined = values[np.isfinite(values)]
    if 2 * len(defined) < draws:
        return float("nan"), float("nan")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)
