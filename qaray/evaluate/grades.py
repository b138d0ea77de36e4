"""Turns a judge's log-probabilities into rows of similarity and RACAR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qaray.corpus.records import has_visible
from qaray.evaluate.rubrics import RacarTargets, SimilarityTargets
from qaray.metrics import racar, similarity
from qaray.metrics.self_contained import paper_reference
from qaray.schema import DIMENSIONS, Failure, ScoreReason, failed

NOT_FINITE = Failure(str(ScoreReason.NOT_FINITE), "the model returned values that are not finite")


def similarity_row(
    key: dict[str, Any], targets: SimilarityTargets, logprobs: list[list[float]] | None, failure: Failure | None
) -> Any:
    """The row of similarity.parquet: one record per compared question pair, judged or not."""
    questions = len(targets["pair_ids"])
    answers = dict(zip(targets["places"], logprobs or [], strict=False))
    scores = {
        place: similarity.expected_level(own, similarity.LEVELS) / 100
        for place, own in answers.items()
        if similarity.is_grade(own)
    }
    judged = {(pair["i"], pair["j"]): n for n, pair in enumerate(targets["asked"])}
    pairs = []
    for (i, j), cosine in zip(similarity.question_pairs(questions, key["doi"]), targets["cosines"], strict=True):
        n = judged.get((i, j))
        one, other = (None, None) if n is None else (scores.get(2 * n), scores.get(2 * n + 1))
        pairs.append({"i": i, "j": j, "cosine": cosine, "judge": one, "judge_swapped": other})
    first = 2 * len(targets["asked"])
    control = [
        {"kind": kind, "score": scores[first + n]} for n, kind in enumerate(targets["control"]) if first + n in scores
    ]
    if failure is None and questions < 2:
        failure = Failure(ScoreReason.FEWER_THAN_TWO_PAIRS)
    if failure is None and (len(scores) < len(answers) or None in targets["cosines"]):
        failure = NOT_FINITE
    if failure is None and len(scores) < len(targets["asked"]) * 2 + len(targets["control"]):
        failure = Failure.of(ScoreReason.OVER_LENGTH, "some questions exceed the judge's context")
    return {**key, "pair_ids": targets["pair_ids"], "pairs": pairs, "control": control, **failed(failure)}


def racar_rows(
    key: dict[str, Any], targets: RacarTargets, logprobs: list[list[float]] | None, failure: Failure | None
) -> Iterator[Any]:
    """Yields the rows of racar.parquet, one per pair."""
    own: dict[int, dict[str, list[float]]] = {}
    swapped: dict[int, dict[str, list[float]]] = {}
    answers = iter(logprobs or [])
    not_finite = set()
    for pair in targets["asked"] if logprobs is not None else []:
        qa, is_swapped = pair["qa"], pair["swapped"]
        grades = {name: next(answers) for name in DIMENSIONS}
        if all(map(similarity.is_grade, grades.values())):
            (swapped if is_swapped else own)[qa] = grades
        elif not is_swapped:
            not_finite.add(qa)
    for qa, (question, pair_id) in enumerate(zip(targets["questions"], targets["pair_ids"], strict=True)):
        own_failure = failure
        if qa in targets["empty"]:
            own_failure = Failure(ScoreReason.EMPTY_ANSWER if has_visible(question) else ScoreReason.EMPTY_QUESTION)
        elif qa in targets["too_long"]:
            own_failure = Failure.of(ScoreReason.OVER_LENGTH, "the pair exceeds a quarter of the judge's context")
        elif qa in not_finite:
            own_failure = NOT_FINITE
        graded = own.get(qa)
        expected = {
            name: similarity.expected_level(graded[name], racar.LEVELS) if graded else None for name in DIMENSIONS
        }
        likeliest = {name: racar.LEVELS[int(np.argmax(graded[name]))] if graded else None for name in DIMENSIONS}
        yield {
            **key,
            "qa": qa,
            "pair_id": pair_id,
            **expected,
            **{f"{name}_argmax": level for name, level in likeliest.items()},
            "passes": racar.passes(expected, self_contained=paper_reference(question) is None) if graded else None,
            "paper_tokens_lost": targets["lost"],
            "swapped": (
                {name: similarity.expected_level(swapped[qa][name], racar.LEVELS) for name in DIMENSIONS}
                if qa in swapped
                else None
            ),
            **failed(own_failure),
        }
