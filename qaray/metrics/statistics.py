"""Means with intervals, and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
MOST_BOOTSTRAPPED = 20_000  # values; beyond it the mean is normal to more digits than are shown


@dataclass(frozen=True)
class Interval:
    """95 % of a mean."""

    low: float
    high: float
    kind: str


def interval_of_mean(values: Sequence[float]) -> Interval | None:
    """Percentile bootstrap over the values, the normal interval for very many; None for fewer than two."""
    from scipy import stats  # takes a second, which workers need not spend

    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return None
    if np.ptp(sample) == 0:
        return Interval(float(sample[0]), float(sample[0]), "bootstrap")
    if sample.size > MOST_BOOTSTRAPPED:
        low, high = stats.norm.interval(0.95, sample.mean(), stats.sem(sample))
        return Interval(float(low), float(high), "normal")
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = found.confidence_interval
    return Interval(float(low), float(high), "bootstrap")


def histogram(values: Sequence[float], bounds: tuple[float, float] | None, bins: int = 20) -> dict[str, Any]:
    """Counts of values between equally spaced edges; without bounds, from the lowest value to the highest."""
    counts, edges = np.histogram(
        np.asarray(values, dtype=np.float64), bins=bins, range=bounds if len(values) else (0, 1)
    )
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}
