"""Question similarity: do two questions of a paper ask for the same thing? Scores in [0, 1]; above 0.5 is flagged."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np

FLAGGED = 0.5  # question pairs above it count as similar
LEVELS = tuple(range(0, 101, 10))  # the judge's choices, 0…100
MAX_QUESTION_PAIRS = 5_000  # compared per paper: all of them up to 100 questions, else a sample


def question_pairs(num_questions: int, seed: str = "") -> list[tuple[int, int]]:
    """The (i, j) with i < j that are compared, in order: all Q(Q − 1)/2, or a sample of MAX_QUESTION_PAIRS of them.

    The sample is uniform and without replacement; ``seed``, the paper's doi, determines it.
    """
    count = math.comb(num_questions, 2)
    if count <= MAX_QUESTION_PAIRS:
        return list(itertools.combinations(range(num_questions), 2))
    return sorted(map(_pair, random.Random(seed).sample(range(count), MAX_QUESTION_PAIRS)))


def _pair(place: int) -> tuple[int, int]:
    """The pair at a place of (0, 1), (0, 2), (1, 2), (0, 3) …"""
    j = (1 + math.isqrt(1 + 8 * place)) // 2
    return place - math.comb(j, 2), j


def pair_cosines(vectors: np.ndarray, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """The cosine of each pair of questions. ``vectors`` [Q, D] have unit length."""
    if not pairs:
        return {}
    i, j = np.array(pairs).T
    sampled = len(pairs) < math.comb(len(vectors), 2)
    cosines = np.einsum("pd,pd->p", vectors[i], vectors[j]) if sampled else (vectors @ vectors.T)[i, j]
    return dict(zip(pairs, cosines, strict=True))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows [N, D] scaled to unit length, float32; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def expected_level(logprobs: Sequence[float], levels: Sequence[float]) -> float:
    """Expected level, with the log-probabilities normalised over ``levels``. Raises ValueError unless ``is_grade``."""
    return float(np.dot(normalised(logprobs), levels))


def normalised(logprobs: Sequence[float]) -> np.ndarray:
    """Probabilities of the choices, which add up to 1. Raises ValueError unless ``is_grade``."""
    if not is_grade(logprobs):
        raise ValueError("the judge's scores are not numbers")
    values = np.asarray(logprobs, dtype=np.float64)
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def is_grade(logprobs: Sequence[float]) -> bool:
    """Whether log-probabilities are usable: at least one, no NaN, and not all −∞."""
    values = np.asarray(logprobs, dtype=np.float64)
    return bool((values > -np.inf).any() and not np.isnan(values).any())


def both_orders(judge: float | None, swapped: float | None) -> float | None:
    """Mean of the scores of the two question orders; None unless both were judged."""
    return None if judge is None or swapped is None else (judge + swapped) / 2


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Area under the ROC curve, in [0, 1]: 0.5 = chance, 1 = perfect. None if either side is empty.

    It is the probability that a positive scores above a negative, with ties counted half.
    """
    if not len(positives) or not len(negatives):
        return None
    from sklearn.metrics import roc_auc_score

    labels = [1] * len(positives) + [0] * len(negatives)
    return float(roc_auc_score(labels, [*positives, *negatives]))


def agreement(judge: Sequence[float], cosine: Sequence[float]) -> float | None:
    """Spearman's rank correlation, in [−1, 1]; None for fewer than three pairs or if one side is constant."""
    if len(judge) < 3 or len(set(judge)) == 1 or len(set(cosine)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(judge, cosine).statistic)
