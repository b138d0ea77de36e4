import numpy as np
import pytest

from qaray.metrics.statistics import histogram, interval_of_mean


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
    same = interval_of_mean([0.3, 0.3])
    assert (same.low, same.high) == (0.3, 0.3)


def test_histogram():
    found = histogram([0.0, 0.04, 0.5, 1.0], (0, 1))
    assert len(found["edges"]) == 21
    assert (found["counts"][0], found["counts"][10], found["counts"][19]) == (2, 1, 1)
    assert sum(histogram([], None)["counts"]) == 0
