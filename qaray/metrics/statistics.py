"""Means with confidence intervals, and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
MOST_BOOTSTRAPPED = 20_000  # values; for more, the mean is normal to more digits than are shown


@dataclass(frozen=True)
class Interval:
    """95 % confidence interval of a mean."""

    low: float
    high: float
    kind: str  # "bootstrap" or "normal"


def interval_of_mean(values: Sequence[float]) -> Interval | None:
    """95 % confidence interval of the mean; None for fewer than two values.

    Percentile bootstrap over the values, or the normal interval for more than MOST_BOOTSTRAPPED.
    """
    from scipy import stats  # takes a second to import, which workers avoid

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
    """``edges`` [bins + 1] and ``counts`` [bins] of equal bins over ``bounds``, by default lowest to highest value."""
    counts, edges = np.histogram(values, bins=bins, range=bounds)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}
