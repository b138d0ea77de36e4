"""Why an answer ended: end of text, complete answer grammar, token limit, or repetition loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qaray.asking.grammar import answer_end
from qaray.schema import FinishReason

LONGEST_PERIOD = 200  # longest loop that is detected, tokens
LOOP_TOKENS = 96  # tokens that must equal those one period earlier
SAME_LINES = 4  # occurrences of a line, digits ignored, that count as a loop


def ending(text: str, tokens: Sequence[int], num_qas: int, *, at_limit: bool, ended: bool) -> tuple[str, FinishReason]:
    """(text, finish reason) of an answer from an external engine; the text is cut after the last requested pair.

    ``tokens``: generated tokens without EOS; empty if only the text is known. ``at_limit``: the token limit was
    reached. ``ended``: the model generated EOS.
    """
    if (end := answer_end(text, num_qas)) is not None:
        return text[:end], FinishReason.STOP
    if not ended and is_repetitive(tokens, text):
        return text, FinishReason.REPETITION
    return text, FinishReason.LENGTH if at_limit else FinishReason.STOP


def is_repetitive(tokens: Sequence[int], text: str) -> bool:
    """Whether the answer is in a repetition loop.

    True if the last LOOP_TOKENS tokens repeat with a period of at most LONGEST_PERIOD, or if a line of ``text`` with
    more than 24 characters, digits ignored, occurs at least SAME_LINES times.
    """
    recent = np.asarray(tokens[-(LOOP_TOKENS + LONGEST_PERIOD) :])
    tail = recent[-LOOP_TOKENS:]
    for period in range(1, len(recent) - LOOP_TOKENS + 1):
        if np.array_equal(tail, recent[-LOOP_TOKENS - period : -period]):
            return True
    lines = (" ".join("".join(" " if c.isdigit() else c for c in line).split()) for line in text.split("\n"))
    seen = Counter(line for line in lines if len(line) > 24)
    return any(times >= SAME_LINES for times in seen.values())
