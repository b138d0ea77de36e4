"""What a judge's log-probabilities say: rows of similarity and of RACAR."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from qaray.metrics import racar, similarity
from qaray.metrics.grounding import leans_on
from qaray.schema import DIMENSIONS, RejectReason

NOT_FINITE = "not_finite: the model gave values that are no numbers"


def similarity_row(key: dict[str, Any], about: str, logprobs: list[list[float]] | None, error: str | None) -> Any:
    """The row of similarity.parquet: a record for each pair of questions, judged or not."""
    known = json.loads(about)
    answers = dict(zip(known["places"], logprobs or [], strict=False))
    scores = {
        place: similarity.expected_level(own, similarity.LEVELS) / 100
        for place, own in answers.items()
        if similarity.is_grade(own)
    }
    judged = {tuple(pair): n for n, pair in enumerate(known["asked"])}
    pairs = []
    for (i, j), cosine in zip(similarity.question_pairs(known["questions"]), known["cosines"], strict=True):
        n = judged.get((i, j))
        one, other = (None, None) if n is None else (scores.get(2 * n), scores.get(2 * n + 1))
        pairs.append({"i": i, "j": j, "cosine": cosine, "judge": one, "judge_swapped": other})
    first = 2 * len(known["asked"])
    control = [
        {"kind": kind, "score": scores[first + n]} for n, kind in enumerate(known["control"]) if first + n in scores
    ]
    problem = error
    if problem is None and known["questions"] < 2:
        problem = "fewer_than_two_pairs"
    if problem is None and (len(scores) < len(answers) or None in known["cosines"]):
        problem = NOT_FINITE
    if problem is None and len(scores) < len(known["asked"]) * 2 + len(known["control"]):
        problem = f"{RejectReason.OVER_LENGTH}: some questions exceed the judge's context"
    return {**key, "pairs": pairs, "control": control, "problem": problem}


def racar_rows(key: dict[str, Any], about: str, logprobs: list[list[float]] | None, error: str | None) -> Iterator[Any]:
    """The rows of racar.parquet, one a pair."""
    known = json.loads(about)
    own: dict[int, dict[str, list[float]]] = {}
    swapped: dict[int, dict[str, list[float]]] = {}
    answers = iter(logprobs or [])
    not_finite = set()
    for qa, is_swapped in known["asked"] if logprobs is not None else []:
        grades = {name: next(answers) for name in DIMENSIONS}
        if all(map(similarity.is_grade, grades.values())):
            (swapped if is_swapped else own)[qa] = grades
        elif not is_swapped:
            not_finite.add(qa)
    for qa, question in enumerate(known["questions"]):
        problem = error
        if qa in known["empty"]:
            problem = "empty_question" if not question.strip() else "empty_answer"
        elif qa in known["too_long"]:
            problem = f"{RejectReason.OVER_LENGTH}: the pair exceeds a quarter of the judge's context"
        elif qa in not_finite:
            problem = NOT_FINITE
        graded = own.get(qa)
        expected = {
            name: similarity.expected_level(graded[name], racar.LEVELS) if graded else None for name in DIMENSIONS
        }
        likeliest = {name: racar.LEVELS[int(np.argmax(graded[name]))] if graded else None for name in DIMENSIONS}
        yield {
            **key,
            "qa": qa,
            **expected,
            **{f"{name}_argmax": level for name, level in likeliest.items()},
            "passes": racar.passes(expected, self_contained=leans_on(question) is None) if graded else None,
            "paper_tokens_lost": known["lost"],
            "swapped": (
                {name: similarity.expected_level(swapped[qa][name], racar.LEVELS) for name in DIMENSIONS}
                if qa in swapped
                else None
            ),
            "problem": problem,
        }
