"""How an answer ended: of itself, with the grammar complete, at its limit, or in a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qaray.asking.grammar import answer_end
from qaray.schema import FinishReason

LONGEST_PERIOD = 200  # tokens of a loop that is recognised
LOOP_TOKENS = 96  # tokens that must repeat what came a period before
SAME_LINES = 4  # times that a line may come back but for its numbers


def ending(
    text: str, tokens: Sequence[int], num_qas: int, *, at_limit: bool, of_itself: bool
) -> tuple[str, FinishReason]:
    """(text, reason) of an answer that another engine has ended.

    ``tokens``: what was written, an end of text left out; empty where only the text is known. ``at_limit``: the limit
    was reached. ``of_itself``: the model wrote an end of text.
    """
    if (end := answer_end(text, num_qas)) is not None:
        return text[:end], FinishReason.STOP
    if not of_itself and runs_in_circles(tokens, text):
        return text, FinishReason.REPETITION
    return text, FinishReason.LENGTH if at_limit else FinishReason.STOP


def runs_in_circles(tokens: Sequence[int], text: str) -> bool:
    """Whether the end of ``tokens`` repeats itself, or ``text`` says the same line again and again."""
    recent = np.asarray(tokens[-(LOOP_TOKENS + LONGEST_PERIOD) :])
    tail = recent[-LOOP_TOKENS:]
    for period in range(1, len(recent) - LOOP_TOKENS + 1):
        if np.array_equal(tail, recent[-LOOP_TOKENS - period : -period]):
            return True
    lines = (" ".join("".join(" " if c.isdigit() else c for c in line).split()) for line in text.split("\n"))
    seen = Counter(line for line in lines if len(line) > 24)
    return any(times >= SAME_LINES for times in seen.values())
