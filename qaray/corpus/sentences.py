"""Sentences of scientific text, by nupunkt: Punkt with pre-trained parameters, which knows most abbreviations.

A plain regular expression breaks "et al. (2004)", "Fig. 3", "S. aureus" and "ca. 7.4"; ``tests/unit/test_sentences.py``
counts what each gets wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Abbreviations of papers that nupunkt's training text lacks. None of them ends a sentence.
_GOES_ON = re.compile(
    r"(?:^|[\s(\[/-])(?:cf|eqs?|figs?|refs?|tabs?|suppl|i\.d|o\.d|r\.s\.d|s\.e\.m|m\.p|b\.p|m?equiv|approx|calcd|conc|"
    r"resp|viz|wt|anhyd|subsp|spp)\.\s*$",
    re.IGNORECASE,
)
# A unit of one letter ends a sentence ("at 300 K. At higher …"); nupunkt takes it for an initial.
_UNIT_AT_END = re.compile(r"(?<=\d\s[A-Za-zΩÅ])\.\s+(?=[A-Z][a-z])")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_BLANKS = re.compile(r"\s*")
_VISIBLE = re.compile(r"\w")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, the blanks behind a sentence included: joined, they are the text.

    A blank line ends a sentence. What has no letter or digit belongs to the sentence before it. A text without any is
    one sentence; the empty text has none.
    """
    sentences: list[str] = []
    for paragraph in _cut(text, [match.end() for match in _BLANK_LINE.finditer(text)]):
        begun = False  # the paragraph's first piece is no continuation
        for piece in _cut(paragraph, _ends(paragraph)):
            last = sentences[-1] if sentences else ""
            if last and (
                not _VISIBLE.search(piece) or not _VISIBLE.search(last) or (begun and _GOES_ON.search(last[-16:]))
            ):
                sentences[-1] += piece
            else:
                sentences.append(piece)
            begun = True
    return sentences


def _ends(paragraph: str) -> Iterator[int]:
    """Where sentences end, the blanks behind them included, in order."""
    import nupunkt

    ends = {_BLANKS.match(paragraph, end).end() for _, end in nupunkt.sent_spans(paragraph)}  # type: ignore[union-attr]
    yield from sorted(ends | {match.end() for match in _UNIT_AT_END.finditer(paragraph)})


def _cut(text: str, ends: list[int] | Iterator[int]) -> Iterator[str]:
    """The parts of a text up to each of ``ends``, and the rest; none empty."""
    start = 0
    for end in [*ends, len(text)]:
        if end > start:
            yield text[start:end]
            start = end
