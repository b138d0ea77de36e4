"""Sentence splitting of scientific text with nupunkt: Punkt with pre-trained parameters and most abbreviations.

A plain regular expression splits "et al. (2004)", "Fig. 3", "S. aureus" and "ca. 7.4"; ``tests/unit/test_sentences.py``
compares the errors of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Abbreviations of scientific papers that nupunkt does not know. None of them ends a sentence.
_GOES_ON = re.compile(
    r"(?:^|[\s(\[/-])(?:cf|eqs?|figs?|refs?|tabs?|suppl|i\.d|o\.d|r\.s\.d|s\.e\.m|m\.p|b\.p|m?equiv|approx|calcd|conc|"
    r"resp|viz|wt|anhyd|subsp|spp)\.\s*$",
    re.IGNORECASE,
)
# A one-letter unit may end a sentence ("at 300 K. At higher …"); nupunkt takes it for an initial.
_UNIT_AT_END = re.compile(r"(?<=\d\s[A-Za-zΩÅ])\.\s+(?=[A-Z][a-z])")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_BLANKS = re.compile(r"\s*")
_VISIBLE = re.compile(r"\w")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, [S], each with its trailing whitespace: their concatenation is the text.

    A blank line ends a sentence. A part without a letter or digit belongs to the previous sentence. A text without any
    is one sentence; the empty text has none.
    """
    sentences: list[str] = []
    for paragraph in _cut(text, [match.end() for match in _BLANK_LINE.finditer(text)]):
        begun = False  # the first piece of a paragraph never continues a sentence
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
    """The ends of the sentences, including trailing whitespace, in order."""
    import nupunkt

    ends = {_BLANKS.match(paragraph, end).end() for _, end in nupunkt.sent_spans(paragraph)}  # type: ignore[union-attr]
    yield from sorted(ends | {match.end() for match in _UNIT_AT_END.finditer(paragraph)})


def _cut(text: str, ends: list[int] | Iterator[int]) -> Iterator[str]:
    """Splits a text at ``ends``; yields no empty parts."""
    start = 0
    for end in [*ends, len(text)]:
        if end > start:
            yield text[start:end]
            start = end
