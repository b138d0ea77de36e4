"""Coverage against closed forms and slow, plain versions."""

import itertools
import random
import re
from fractions import Fraction

import numpy as np
import pytest

from qaray.metrics.coverage import best_together, chunk_rate, coverage, evidence, expected_chunk_rate, sample_size


def slow_chunk_rate(ids, n):
    return len({10 * j // n for j in ids}) / 10


def slow_walk(scores, k):
    """The definition: all entries from the highest down, ties to the lower pair, then the lower sentence."""
    entries = sorted(itertools.product(*map(range, scores.shape)), key=lambda e: (-scores[e], *e))
    found = []
    for _, sentence in entries:
        if sentence not in found:
            found.append(sentence)
        if len(found) == k:
            return found
    return found


def test_chunk_rate_by_hand():
    assert chunk_rate([0], 10) == 0.1
    assert chunk_rate([0, 1, 2], 100) == 0.1  # all in the first tenth
    assert chunk_rate([9, 10], 100) == 0.2  # either side of a border
    assert chunk_rate(range(154), 154) == 1.0
    assert chunk_rate([0, 1, 2], 3) == 0.3  # a short paper: sentences lie in tenths 0, 3, 6
    assert chunk_rate([], 5) == 0.0
    for bad in ([-1], [5], [0, 9]):
        with pytest.raises(ValueError, match="0…4"):
            chunk_rate(bad, 5)


@pytest.mark.parametrize("n", [1, 2, 7, 9, 10, 11, 19, 154, 1000])
def test_chunk_rate_equals_the_slow_one(n):
    draw = random.Random(n)
    for _ in range(20):
        ids = draw.sample(range(n), draw.randint(1, n))
        assert chunk_rate(ids, n) == pytest.approx(slow_chunk_rate(ids, n))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_walk_over_all_entries(levels):
    """Few levels give many ties: a walk by sentence maxima alone would order them otherwise."""
    generator = np.random.default_rng(levels)
    for _ in range(60):
        q, n = generator.integers(1, 6), generator.integers(1, 30)
        scores = (generator.integers(0, levels, (q, n)) / levels).astype(np.float32)
        k = int(generator.integers(1, n + 1))
        assert best_together(scores, k).tolist() == slow_walk(scores, k)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (7, 2), (10, 3), (20, 3), (23, 8), (154, 23)])
def test_expected_chunk_rate_equals_simulation(n, k):
    draw = random.Random(0)
    drawn = [slow_chunk_rate(draw.sample(range(n), k), n) for _ in range(20_000)]
    assert expected_chunk_rate(n, k) == pytest.approx(np.mean(drawn), abs=0.004)


def test_expected_chunk_rate_equals_all_draws():
    """Exact: every draw of three of twelve sentences."""
    draws = list(itertools.combinations(range(12), 3))
    exact = sum(Fraction(len({10 * j // 12 for j in draw}), 10) for draw in draws) / len(draws)
    assert expected_chunk_rate(12, 3) == pytest.approx(float(exact), abs=1e-12)


def test_the_published_anchor():
    """23 of 154 random sentences already hit 0.93 of the tenths."""
    assert sample_size(154) == 23
    assert expected_chunk_rate(154, 23) == pytest.approx(0.93, abs=0.005)


def test_expected_chunk_rate_of_a_very_long_paper():
    assert expected_chunk_rate(100_000, 15_000) == pytest.approx(1.0)


def test_coverage_of_one_paper():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(4, 40)).astype(np.float32)
    found = coverage(scores)
    k = 6
    own = [sorted(range(40), key=lambda j, i=i: (-scores[i, j], j))[:k] for i in range(4)]
    assert found.overall == slow_chunk_rate(slow_walk(scores, k), 40)
    assert found.individual == pytest.approx(np.mean([slow_chunk_rate(ids, 40) for ids in own]))
    assert found.lift == pytest.approx(found.overall - found.null)
    mean = scores.astype(float).mean(axis=0)
    assert found.sentence_std == pytest.approx(np.sqrt(((scores - mean) ** 2).mean(axis=0)), abs=1e-6)
    assert evidence(scores)[2] == sorted(range(40), key=lambda j: (-scores[2, j], j))[:10]


def test_small_papers():
    one = coverage(np.array([[0.3]], dtype=np.float32))
    assert (one.overall, one.individual, one.null, one.lift, one.sentence_std) == (
        0.1,
        0.1,
        pytest.approx(0.1),
        pytest.approx(0),
        [0.0],
    )
    assert evidence(np.array([[0.3]])) == [[0]]
    assert sample_size(6) == sample_size(1) == 1


def test_scores_that_are_equal_in_float32_are_ties():
    """Sentences 0 and 1 of 14 lie in one tenth; in float64, sentence 2 would come before sentence 1."""
    scores = np.array([[1.0, 0.5, 0.5 + 1e-12, *[0.0] * 11]])
    assert coverage(scores).individual == 0.1
    assert coverage(scores.tolist()).overall == 0.1


def test_ties_go_to_the_lower_sentence():
    scores = np.zeros((2, 200), dtype=np.float32)
    scores[1, ::2] = 1
    assert evidence(scores) == [list(range(10)), list(range(0, 20, 2))]
    assert evidence(scores, 3) == [[0, 1, 2], [0, 2, 4]]
    assert coverage(scores).individual == pytest.approx((0.2 + 0.3) / 2)  # 30 of the first 30, and of the first 60


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0, 3)), "the matrix must be pairs × sentences, at least one of each, got (0, 3)"),
        (np.zeros((3, 0)), "the matrix must be pairs × sentences, at least one of each, got (3, 0)"),
        (np.zeros(3), "the matrix must be pairs × sentences, at least one of each, got (3,)"),
        (np.array([[0.1, np.nan]]), "the matrix holds values that are not finite"),
        (np.array([[np.inf]]), "the matrix holds values that are not finite"),
    ],
)
def test_what_is_no_matrix_of_scores_is_refused(bad, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        coverage(bad)
