"""Controls that check whether a judge is reliable.

A question paired with itself or its paraphrase must score above questions of different papers; a pair with its own
answer must score above the same question with an answer of another paper.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal

from qaray.corpus.records import has_visible
from qaray.schema import Pair

CONTROL_PAIRS = 2  # pairs per control paper whose answers are swapped
CONTROL_QUESTIONS = 100  # questions per control paper, at most
CONTROL_KINDS = ("duplicate", "paraphrase", "unrelated")


def other_questions(papers: Sequence[Sequence[Pair]], place: int, most: int) -> list[str]:
    """Up to ``most`` questions of the papers after ``place``, for controls; empty if no other paper has pairs."""
    return _others(papers, place, most, "Q")


def other_answers(papers: Sequence[Sequence[Pair]], place: int, most: int = CONTROL_PAIRS) -> list[str]:
    """Up to ``most`` answers of the papers after ``place``, for controls."""
    return _others(papers, place, most, "A")


def _others(papers: Sequence[Sequence[Pair]], place: int, most: int, key: Literal["Q", "A"]) -> list[str]:
    found: list[str] = []
    for step in range(1, len(papers)):
        other = (pair[key] for pair in papers[(place + step) % len(papers)] if has_visible(pair[key]))
        found.extend(itertools.islice(other, most - len(found)))
        if len(found) >= most:
            break
    return found


_MAIN = r"(?:main |key |primary |major )?"
_RULES: list[tuple[str, str]] = [
    (rf"^What (?:is|are) the {_MAIN}(?:advantages?|benefits?) of (.+)\?$", r"Which benefits does \1 bring?"),
    (r"^What (?:is|was) the (?:purpose|aim|goal|role|function) of (.+)\?$", r"What does \1 serve for?"),
    (
        rf"^What (?:is|are) the {_MAIN}(?:factors?|parameters?) (?:that )?(?:affect|influence|determine)s? (.+)\?$",
        r"On what does \1 depend?",
    ),
    (r"^What (?:is|are) (.+)\?$", r"How would you define or describe \1?"),
    (r"^What (?:was|were) (.+)\?$", r"Can you name \1?"),
    (r"^What (.+)\?$", r"Could you say what \1?"),
    (r"^Which (.+)\?$", r"Can you name which \1?"),
    (r"^How much (.+)\?$", r"In what amount \1?"),
    (r"^How many (.+)\?$", r"What is the number of \1?"),
    (r"^How (?:is|are|was|were|does|do|did|can|could) (.+)\?$", r"By what means or in what way: \1?"),
    (r"^How (.+)\?$", r"In what manner \1?"),
    (r"^Why (.+)\?$", r"For what reason \1?"),
    (r"^When (.+)\?$", r"At what time \1?"),
    (r"^Where (.+)\?$", r"At what place \1?"),
]
_COMPILED = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), form) for pattern, form in _RULES]


def paraphrase(question: str) -> str:
    """The question with a different opening."""
    question = " ".join(question.split())
    for pattern, form in _COMPILED:
        if match := pattern.match(question):
            return match.expand(form)
    return f"Please explain the following: {question}"
