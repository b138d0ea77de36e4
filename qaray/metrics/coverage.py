"""Sentence coverage: how much of a paper its pairs cover (SciQAG, arXiv 2405.09939, coverage notebook).

``scores`` [Q, S] float32 are the cosines of pair i and sentence j. Ties go to the lower pair, then the lower sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CHUNKS = 10  # equal parts of a paper
SHARE = 0.15  # share of a paper's sentences that are selected
EVIDENCE = 10  # best sentences kept per pair
BLOCK = 1_000_000  # scores that are sorted at once


@dataclass(frozen=True)
class Coverage:
    """Coverage of one paper."""

    overall: float  # chunk rate of the k sentences that all pairs together score highest, in [0, 1]
    individual: float  # mean over pairs of the chunk rate of the pair's own k best sentences, in [0, 1]
    null: float  # expected chunk rate of k random sentences, in [0, 1]
    sentence_std: list[float]  # population standard deviation of a sentence's scores over the pairs, [S]

    @property
    def lift(self) -> float:
        """overall − null, in [−1, 1]: negative if the pairs cluster more than random ones."""
        return self.overall - self.null


def coverage(scores: np.ndarray) -> Coverage:
    """Coverage of a paper from ``scores`` [Q, S]. Raises ValueError for an empty or non-finite matrix."""
    scores = _checked(scores)
    sentences = scores.shape[1]
    k = sample_size(sentences)
    return Coverage(
        overall=chunk_rate(best_together(scores, k), sentences),
        individual=float(np.mean(_chunk_rates(scores, k))),
        null=expected_chunk_rate(sentences, k),
        sentence_std=_stds(scores).tolist(),
    )


def sample_size(num_sentences: int) -> int:
    """k, the number of selected sentences: 15 % of the paper's, rounded down, at least 1."""
    return max(1, int(SHARE * num_sentences))


def chunk_rate(sentence_ids: Iterable[int], num_sentences: int, num_chunks: int = CHUNKS) -> float:
    """Share of the paper's equal chunks that hold at least one of the sentences, in [0, 1].

    ``sentence_ids`` are positions in 0…num_sentences − 1; sentence j lies in chunk ``num_chunks · j // num_sentences``.
    Raises ValueError if an id lies outside the paper.
    """
    ids = np.fromiter(sentence_ids, dtype=np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= num_sentences):
        raise ValueError(f"sentence ids must lie in 0…{num_sentences - 1}, got {ids.min()}…{ids.max()}")
    return len(np.unique(num_chunks * ids // num_sentences)) / num_chunks


def best_together(scores: np.ndarray, k: int) -> np.ndarray:
    """The first k distinct sentences among all entries of ``scores`` [Q, S] in descending order."""
    best = scores.max(axis=0)  # a sentence first occurs at its highest score,
    pair = scores.argmax(axis=0)  # and among equal scores at the lowest pair
    sentence = np.arange(scores.shape[1])
    return np.lexsort((sentence, pair, -best))[:k]


def expected_chunk_rate(num_sentences: int, k: int, num_chunks: int = CHUNKS) -> float:
    """Expected chunk rate of k sentences drawn without replacement: mean over chunks of 1 − C(n − n_c, k) / C(n, k)."""
    sizes = np.bincount(num_chunks * np.arange(num_sentences) // num_sentences, minlength=num_chunks)
    draws = _log_binomial(num_sentences, k)
    others = [num_sentences - int(size) for size in sizes]
    missed = [math.exp(_log_binomial(rest, k) - draws) if rest >= k else 0.0 for rest in others]
    return 1 - math.fsum(missed) / num_chunks


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def evidence(scores: np.ndarray, most: int = EVIDENCE) -> list[list[int]]:
    """Ids of each pair's best sentences, best first: [Q][min(most, S)]."""
    return [ids for rows in _blocks(scores) for ids in _best(rows, most).tolist()]


def _best(scores: np.ndarray, most: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:, :most]


def _chunk_rates(scores: np.ndarray, k: int) -> np.ndarray:
    """The chunk rate of each pair's own k best sentences, [Q]."""
    sentences = scores.shape[1]
    chunk = CHUNKS * np.arange(sentences) // sentences  # [S]
    rates = []
    for rows in _blocks(scores):
        hit = np.zeros((len(rows), CHUNKS), dtype=bool)
        np.put_along_axis(hit, chunk[_best(rows, k)], True, axis=1)
        rates.append(hit.sum(axis=1) / CHUNKS)
    return np.concatenate(rates)


def _stds(scores: np.ndarray) -> np.ndarray:
    """Population standard deviation of each column, in double precision, [S]."""
    return np.concatenate([columns.T.astype(np.float64).std(axis=0) for columns in _blocks(scores.T)])


def _blocks(scores: np.ndarray) -> list[np.ndarray]:
    """The rows in equal parts of about BLOCK values, for what needs several times the memory of its rows."""
    return np.array_split(scores, max(1, min(len(scores) // 2, -(-scores.size // BLOCK))))


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float32)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"the matrix must be pairs × sentences, at least one of each, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("the matrix holds values that are not finite")
    return scores
