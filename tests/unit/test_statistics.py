import numpy as np
import pytest

from qaray.metrics.statistics import Interval, histogram, interval_of_mean


def test_the_interval_covers_as_often_as_it_says():
    """200 samples of a known mean: 95 % intervals miss it about ten times."""
    generator = np.random.default_rng(3)
    missed = 0
    for _ in range(200):
        found = interval_of_mean(generator.normal(0.5, 0.1, 40))
        missed += not found.low <= 0.5 <= found.high
    assert 2 <= missed <= 24


def test_bootstrap_and_normal_agree_where_both_hold():
    values = np.random.default_rng(0).random(30_000)
    many, fewer = interval_of_mean(values), interval_of_mean(values[:20_000])
    assert (many.kind, fewer.kind) == ("normal", "bootstrap")
    assert many.high - many.low == pytest.approx((fewer.high - fewer.low) * np.sqrt(2 / 3), rel=0.1)


def test_few_values():
    assert interval_of_mean([]) is None
    assert interval_of_mean([0.3]) is None
    assert interval_of_mean([0.3, 0.3]) == Interval(0.3, 0.3, "bootstrap")
    assert interval_of_mean([0.0, 1.0]) == Interval(0.0, 1.0, "bootstrap")
    assert interval_of_mean([0.0] * 9 + [1.0]) == Interval(0.0, 0.3, "bootstrap")  # percentiles of a binomial


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(5).random(50)
    assert interval_of_mean(values) == interval_of_mean(values)


def test_the_normal_interval():
    values = np.arange(30_000.0)
    found, half = interval_of_mean(values), 1.959964 * values.std(ddof=1) / np.sqrt(30_000)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_histogram():
    found = histogram([0.0, 0.04, 0.5, 1.0], (0, 1))
    assert len(found["edges"]) == 21
    assert (found["counts"][0], found["counts"][10], found["counts"][19]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("values", "bounds", "edges", "counts"),
    [
        ([0.1, 0.5, 0.9], (0, 1), [0, 0.333333, 0.666667, 1], [1, 1, 1]),
        ([2, 4, 5], None, [2, 3, 4, 5], [1, 0, 2]),
        ([], None, [0, 0.333333, 0.666667, 1], [0, 0, 0]),
        ([], (1, 4), [1, 2, 3, 4], [0, 0, 0]),
    ],
)
def test_edges_and_counts(values, bounds, edges, counts):
    assert histogram(values, bounds, bins=3) == {"edges": edges, "counts": counts}
