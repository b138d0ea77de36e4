"""Pairs of questions and answers with markers.

A pair ends where the next question begins, so an answer may contain blank lines, lists, colons and formulas. What looks
like a marker counts only where it fits in: ``Q10: 2.1 at 300 K.`` within the answer to question 1 is text, since the
next question is number 2 and no answer 10 follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qaray.asking.parsing.drafts import PLACEHOLDER, Draft, Line, asks, lines_of, pairs_of
from qaray.asking.parsing.listed import FORMATS, listed_question, unmarked
from qaray.asking.parsing.markers import ALTERNATIVES, ANSWER, END, HEADING, QUESTION, Marker, without_tags
from qaray.schema import QA

MAX_BETWEEN = 2  # lines of text between a question that is numbered unlike the first one and its answer


@dataclass(frozen=True)
class MarkedAnswer:
    """The pairs of a text, in order."""

    pairs: list[QA]
    unanswered: bool = False  # whether the pairs are followed by a question without an answer


def marked_pairs(text: str) -> MarkedAnswer:
    """The pairs of an answer. Raises nothing; the first format that gives pairs counts."""
    text = without_tags(text)
    for markers in ALTERNATIVES:
        if not markers.common and not markers.hint.search(text):
            continue
        drafts = _marked(lines_of(text, markers))
        if not markers.common and 2 * sum(draft.asks for draft in drafts) <= len(drafts):
            continue  # letters that are variables: "P: 0.05"
        if pairs := pairs_of(drafts):
            return MarkedAnswer(pairs, not drafts[-1].answered)
    lines = lines_of(text, ALTERNATIVES[0])
    for read in FORMATS:
        drafts = read(lines)
        if pairs := pairs_of(drafts, marked=read is not unmarked):
            return MarkedAnswer(pairs, not drafts[-1].answered)
    return MarkedAnswer([])


def begins_marked(text: str) -> bool:
    """Whether a text, perhaps cut off, has a question and the beginning of its answer."""
    drafts = _marked(lines_of(without_tags(text), ALTERNATIVES[0]))
    return any(draft.answered and draft.asks for draft in drafts)


def has_questions(text: str) -> bool:
    """Whether a text has markers of questions or numbered questions."""
    lines = lines_of(without_tags(text), ALTERNATIVES[0])
    return any((line.marker and line.marker.role == QUESTION) or listed_question(line) for line in lines)


def _marked(lines: list[Line]) -> list[Draft]:
    _begin_with_question(lines)
    places = [place for place, line in enumerate(lines) if line.marker and line.marker.role in (QUESTION, ANSWER)]
    markers = [marker for place in places if (marker := lines[place].marker)]
    keys = dict(zip(places, _pairing(markers, lines, places), strict=True))
    drafts: dict[int, Draft] = {}
    target: list[Line] | None = None  # where text goes
    role = ""  # of this text
    for place, line in enumerate(lines):
        marker, key = line.marker, keys.get(place)
        if marker and key is not None:
            draft = drafts.setdefault(key, Draft([]))
            role, target = marker.role, draft.question if marker.role == QUESTION else draft.answer
            target.append(Line("", marker.text))
            draft.answered = draft.answered or role == ANSWER
        elif target is not None:
            ends = marker is not None and marker.role == END and any(each.text.strip() for each in target)
            heads = marker is not None and marker.role == HEADING and role == QUESTION
            if ends or heads:
                target = None
            else:
                target.append(line)
    return list(drafts.values())


def _begin_with_question(lines: list[Line]) -> None:
    """Gives the question before the first answer a marker, if the output goes on where the prompt had written "Q1:"."""
    marks = [place for place, line in enumerate(lines) if line.marker and line.marker.role in (QUESTION, ANSWER)]
    first = lines[marks[0]].marker if marks else None
    asked = any(marker and marker.role == QUESTION for marker in (lines[place].marker for place in marks))
    if first is None or first.role == QUESTION or not (asked or len(marks) == 1):
        return
    before = [line for line in lines[: marks[0]] if line.text.strip()]
    if before and asks(before[-1].text) and not listed_question(before[-1]):
        before[-1].marker = Marker(QUESTION, first.number, first.style, before[-1].text)


def _fitting(markers: Sequence[Marker]) -> list[bool]:
    """Whether each marker may be one: where two or more questions look alike, another kind counts only if it asks."""
    first = next((i for i, m in enumerate(markers[:-1]) if (m.role, markers[i + 1].role) == (QUESTION, ANSWER)), None)
    if first is None:
        return [True] * len(markers)
    style = markers[first].style
    alike = [place for place, marker in enumerate(markers) if marker.role == QUESTION and marker.style == style]
    if len(alike) < 2:
        return [True] * len(markers)
    odd = {p for p, m in enumerate(markers) if m.role == QUESTION and m.style != style and not asks(m.text)}
    told = {markers[place + 1].style for place in alike if place + 1 < len(markers)} if odd else set()
    return [
        place not in odd and not (marker.role == ANSWER and place - 1 in odd and marker.style not in told)
        for place, marker in enumerate(markers)
    ]


def _pairing(markers: Sequence[Marker], lines: Sequence[Line], places: Sequence[int]) -> list[int | None]:
    """For each marker the index of its question's marker; None for a marker that is text."""
    if _answers_first(markers):
        return [place + 1 if marker.role == ANSWER else place for place, marker in enumerate(markers)]
    keys: list[int | None] = [None] * len(markers)
    runs = _runs(markers, _fitting(markers))
    tail = runs[-1][0][0] if runs and not runs[-1][1] else len(markers)  # first of the last questions, unanswered
    last, style = 0, ""
    asked_later = {marker.number: place for place, marker in enumerate(markers) if marker.role == QUESTION}
    texts = [0, *itertools.accumulate(bool(line.text.strip()) for line in lines)]  # lines with text before each line
    alternate = all(len(asked) == 1 and len(told) <= 1 for asked, told in runs)
    for asked, told in runs:
        for question, answer in _matches(markers, asked, told, None if alternate else last):
            marker = markers[question]
            if last and marker.number not in (None, last + 1) and asked_later.get(last + 1, -1) > answer:
                continue  # "Q4: good" in the answer to question 1, before question 2
            unlike = style and (marker.number is None) != (style == "bare")
            if unlike and texts[places[answer]] - texts[places[question] + 1] > MAX_BETWEEN:
                continue
            keys[question] = keys[answer] = question
            style = style or ("bare" if marker.number is None else "numbered")
            last = last if PLACEHOLDER.fullmatch(marker.text.strip()) else marker.number or last
    answered = {markers[key].number: key for key in keys if key is not None}
    first = next((key for key in keys if key is not None), len(markers))
    last = 0
    for place, marker in enumerate(markers):
        if keys[place] is not None:
            last = markers[place].number or last
        elif place > first or first == len(markers):
            follows = marker.number == last + 1 and answered.get(marker.number, -1) < place
            at_end = marker.number is None and style != "numbered" and place >= tail
            if follows or (at_end and marker.role == QUESTION):  # a question without an answer, or the reverse
                keys[place] = place
                last = marker.number or last
    return keys


def _runs(markers: Sequence[Marker], fitting: Sequence[bool]) -> list[tuple[list[int], list[int]]]:
    """The markers as runs: questions, then answers."""
    runs: list[tuple[list[int], list[int]]] = []
    for place, marker in enumerate(markers):
        if not fitting[place]:
            continue
        if marker.role == QUESTION:
            if not runs or runs[-1][1]:
                runs.append(([], []))
            runs[-1][0].append(place)
        elif runs:
            runs[-1][1].append(place)
    return runs


def _matches(
    markers: Sequence[Marker], asked: list[int], told: list[int], last: int | None
) -> Iterator[tuple[int, int]]:
    """(question, answer) of a run: by number, else in order if there are as many, else the last and the first.

    ``last``: number of the question before; None if numbers need not agree, since questions and answers alternate.
    """
    numbers: dict[int | None, int] = {}
    for answer in told:
        numbers.setdefault(markers[answer].number, answer)
    by_number = [(q, numbers[markers[q].number]) for q in asked if markers[q].number in numbers]
    if len(asked) == 1 or len(told) == 1:
        question, bare = asked[-1], numbers.get(None)
        if by_number:
            yield by_number[-1]
        elif bare is not None:
            yield question, bare
        elif told and (not last or markers[question].number in (None, last + 1)):
            yield question, told[0]
    elif by_number and None not in {markers[question].number for question, _ in by_number}:
        yield from {answer: (question, answer) for question, answer in by_number}.values()
    elif len(asked) == len(told):
        yield from zip(asked, told, strict=True)
    elif told:
        yield asked[-1], told[0]


def _answers_first(markers: Sequence[Marker]) -> bool:
    """Whether each answer stands before its question, with the same number."""
    pairs = list(zip(markers[::2], markers[1::2], strict=False))
    return len(markers) % 2 == 0 and all(
        (one.role, two.role) == (ANSWER, QUESTION) and one.number == two.number is not None for one, two in pairs
    )
