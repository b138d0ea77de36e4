"""Question similarity: do two questions of a paper ask for the same thing? Scores in [0, 1]; above 0.5 is flagged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

FLAGGED = 0.5  # question pairs above it count as similar
LEVELS = tuple(range(0, 101, 10))  # the judge's choices, 0…100


def question_pairs(num_questions: int) -> list[tuple[int, int]]:
    """All (i, j) with i < j: Q(Q − 1)/2 of them."""
    return list(itertools.combinations(range(num_questions), 2))


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
