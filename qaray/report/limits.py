"""What a page shows of a long paper: the beginning, and how much more there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

PAIRS = 200  # pairs of a paper's page
PAIR_TEXT = 10_000  # characters of a question or an answer
TEXT = 1_000_000  # characters of the paper
SENTENCES = 20_000  # of the paper
LINE = 300  # characters of a title, a doi, a keyword or a warning
KEYWORDS = 50
OUTPUTS = 20  # answers without a pair


def cut(text: str, most: int = LINE) -> str:
    """The first ``most`` characters of a text, with the number of those that follow."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def first(items: Sequence[str], most: int) -> list[str]:
    """The first ``most`` items, each cut to a line, with the number of those that follow."""
    more = [f"{len(items) - most:,} more"] if len(items) > most else []
    return [*map(cut, items[:most]), *more]


def cut_rejected(row: dict[str, Any]) -> dict[str, Any]:
    """A rejected record, each of its texts cut to a line."""
    return {name: cut(value) if isinstance(value, str) else value for name, value in row.items()}


def cut_paper(paper: dict[str, Any], where: str) -> dict[str, Any]:
    """The paper as its page shows it. ``where``: what has all of its text and pairs."""
    pairs, sentences, evidence = paper["pairs"], paper["sentences"], paper["evidence"]
    shown = _cut_sentences(sentences)
    notes = []
    if len(pairs) > PAIRS:
        notes.append(f"Showing the first {PAIRS:,} pairs; {len(pairs) - PAIRS:,} more are in {where}.")
    if more := sum(map(len, sentences)) - sum(map(len, shown)):
        notes.append(f"Showing the beginning of the paper's text; {more:,} more characters are in {where}.")
    return paper | {
        "title": cut(paper["title"]),
        "doi": cut(paper["doi"]),
        "source": paper["source"] and cut(paper["source"]),
        "keywords": first(paper["keywords"] or [], KEYWORDS),
        "why": cut(paper["why"], PAIR_TEXT),
        "outputs": [cut(output, PAIR_TEXT) for output in paper["outputs"][:OUTPUTS]],
        "problems": [*map(cut, paper["problems"])],
        "pairs": [
            pair
            | {
                "Q": cut(pair["Q"], PAIR_TEXT),
                "A": cut(pair["A"], PAIR_TEXT),
                "warnings": [*map(cut, pair["warnings"])],
            }
            for pair in pairs[:PAIRS]
        ],
        "sentences": shown,
        "evidence": [[one for one in best if one[0] < len(shown)] for best in evidence[:PAIRS]],
        "left_out": notes,
    }


def _cut_sentences(sentences: Sequence[str]) -> list[str]:
    """The first sentences, of at most TEXT characters together; the last of them may be cut."""
    shown = []
    for sentence, end in zip(sentences[:SENTENCES], accumulate(map(len, sentences)), strict=False):
        shown.append(sentence if end <= TEXT else sentence[: len(sentence) - (end - TEXT)])
        if end >= TEXT:
            break
    return shown
