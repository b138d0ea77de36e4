"""The answer grammar: requesting, writing and parsing pairs, and the end of an answer.

    Q1: What is …?
    A1: It is …

    Q2: …

This format is requested and written. The parser also reads other formats that models produce: numbered or bare markers,
with or without bold, numbered lists of questions with ``A:`` below, JSON objects {"Q": …, "A": …} alone or in a list:

    A   1. question            B   Keywords: …
        A: answer                  Q1: question
                                   A1: answer

A pair ends where the next question begins, so an answer may contain blank lines, lists, colons and formulas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qaray.schema import QA, FinishReason, ParseStatus

OPENING = "Q1:"  # appended to a chat model's prompt: keeps small models within the grammar
END = "END"  # a line with which some models end the answer


# Request


def answer_format(num_qas: int, structured: bool = False) -> str:
    """Format instructions for an answer of ``num_qas`` pairs; for JSON if ``structured``."""
    if structured:
        return f'a JSON list of {num_qas} objects, one a pair: [{{"Q": "…?", "A": "…"}}, …]'
    lines = [f"Q{i}: {'What' if i % 2 else 'How'} …?\nA{i}: …" for i in range(1, min(num_qas, 2) + 1)]
    if num_qas > 2:
        lines.append(f"and so on up to Q{num_qas} and A{num_qas}.")
    return "\n\n".join(lines)


def json_schema(num_qas: int) -> dict[str, Any]:
    """JSON schema of an answer of ``num_qas`` pairs, for --structured."""
    text = {"type": "string", "minLength": 1}
    pair = {
        "type": "object",
        "properties": {"Q": text, "A": text},
        "required": ["Q", "A"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": pair, "minItems": num_qas, "maxItems": num_qas}


# Writing


def write_pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Formats ``pairs`` as an answer, from which ``parse_answer`` reads the same pairs."""
    return "\n\n".join(f"Q{i}: {pair['Q']}\nA{i}: {pair['A']}" for i, pair in enumerate(pairs, start=1))


# End of the answer


def answer_end(text: str, num_qas: int) -> int | None:
    """End of an answer of ``num_qas`` pairs, as a character position in ``text``; None while it is incomplete.

    The answer ends before a question beyond the requested number, or before a line END.
    """
    reasoning = re.match(r"(?s).*</(?:think|thinking|reasoning)>", text)
    start = reasoning.end() if reasoning else 0
    if re.search(r"<(?:think|thinking|reasoning)>", text[start:]):
        return None  # a draft in unfinished reasoning does not count
    match = re.search(rf"\n\s*(?:\*\*)?(?:Q(?:uestion )?0*{num_qas + 1}\s*[:.)]|{END}\b)", text[start:])
    return start + match.start() if match else None


def stop_strings(num_qas: int) -> list[str]:
    """Stop strings for an answer of ``num_qas`` pairs, most likely first. For engines that need fixed strings."""
    after = num_qas + 1
    heads = (f"\nQ{after}", f"\n**Q{after}", f"\nQuestion {after}")
    likely = [*(head + ":" for head in heads), f"\n{END}\n"]
    return [*likely, *(head + mark for head in heads for mark in ".)"), f"\n**Question {after}:"]


# Parsing

_DECORATION = r"[\s>#*_`\-•]*"
# A marker may follow a list number ("1. **Question:** …"), and its bold may close before or after the colon.
_MARKER = (
    rf"^(?P<deco>{_DECORATION}(?:\d+\s*[.)]{_DECORATION})?)(?:WORD)\s*"
    r"(?:(?P<no>\d+)(?P<early>[*_`]*)\s*[:.)\-–]|(?P<early2>[*_`]*)\s*:)(?P<close>[*_`]*)\s*(?P<text>.*)$"
)
_QUESTION = re.compile(_MARKER.replace("WORD", "Q|Question"), re.I)
_ANSWER = re.compile(_MARKER.replace("WORD", "A|Ans|Answer"), re.I)
_NUMBERED = re.compile(rf"^(?P<deco>{_DECORATION})(?P<no>\d+)\s*[.):](?P<close>[*_`]*)\s+(?P<text>\S.*)$")
# "…basis? A1: It is" on one line: the marker is moved to a line of its own.
_INLINE = re.compile(r"(?<=[.?!:)\]*])(?<!\d[.)])[ \t]+(?=\**(?:Q|A|Question |Answer )\d+:\**\s)")
_INLINE_ANSWER = re.compile(
    r"(?m)^(.{0,4}(?:(?:Q|Question)(?:\s*\d+)?\s*:|\d+[.)]\s).*?\?\**)[ \t]+(?=\**(?:A|Answer):\**\s)"
)
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.S | re.I)
_THOUGHT = re.compile(r"^.*</(?:think|thinking|reasoning)>", re.S | re.I)
_PLACEHOLDER = re.compile(
    r"[\[<({]?\s*(?:(?:your\s+)?(?:question|answer)(?:\s*\d+)?(?:\s+here)?|\.{2,}|…)\s*[\])}>]?[.?]?", re.I
)
# Closing remarks of models: a paragraph that begins like this ends the last answer and is not part of it.
_FAREWELL = re.compile(
    r"^\W*(?:END\b\W*$|\[?END\]?$|-{3,}$|```|I hope\b|Let me know\b|Please (?:let|note|feel)\b|Feel free\b"
    r"|(?:All |The |Each of )?(?:these|the above) (?:\w+ ){0,3}(?:questions?|Q&As?|pairs)\b|Keywords?:)",
    re.I,
)
_JSON_STRING = r'"(?:[^"\\]|\\.)*"'
_JSON_PAIR = re.compile(
    rf'\{{\s*"(?:Q|question)"\s*:\s*({_JSON_STRING})\s*,\s*"(?:A|answer)"\s*:\s*({_JSON_STRING})\s*,?\s*\}}',
    re.S | re.I,
)
_JSON_BEGINS = re.compile(r"\s*(?:```(?:json)?\s*)?[\[{]", re.I)
_SENTENCE_END = re.compile(r"[.!?…。)\]}\"'”’:;*`%°]\s*$")


@dataclass(frozen=True)
class ParsedText:
    """The pairs of one text, in order, and the status of the text."""

    pairs: list[QA]
    status: ParseStatus


@dataclass
class _Draft:
    """A question that is being parsed, and its answer once it has begun."""

    number: str | None
    question: list[str]
    answer: list[str] | None = None


def parse_answer(text: str, num_qas: int, finish_reason: str | None = None) -> ParsedText:
    """Parses the question-answer pairs of a model's text.

    Raises nothing: a text without pairs has status MALFORMED. Repeated questions keep their first answer.

    Args:
        text: The generated text.
        num_qas: Number of pairs of a complete answer.
        finish_reason: A FinishReason, if known. If the text was cut off, a last answer that stops in the middle of a
            sentence is dropped.
    """
    if (found := _json_pairs(text)) is not None:
        return _parsed(found, num_qas, finish_reason in (FinishReason.LENGTH, FinishReason.REPETITION))
    drafts = _drafts(_normal(text))
    cut = finish_reason in (FinishReason.LENGTH, FinishReason.REPETITION)
    pairs = [pair for draft in drafts if (pair := _pair(draft, last=draft is drafts[-1]))]
    if drafts and drafts[-1].answer is None:
        cut = True  # a question without an answer at the end
    elif cut and pairs and not _SENTENCE_END.search(pairs[-1]["A"]):
        pairs.pop()
    return _parsed(pairs, num_qas, cut)


def _parsed(pairs: list[QA], num_qas: int, cut: bool) -> ParsedText:
    """Removes repeated questions and sets the status. ``cut``: the text was cut off."""
    pairs = _distinct(pairs)
    if not pairs:
        return ParsedText([], ParseStatus.MALFORMED)
    if len(pairs) >= num_qas:
        return ParsedText(pairs, ParseStatus.COMPLETE)
    return ParsedText(pairs, ParseStatus.TRUNCATED if cut else ParseStatus.SHORT)


def _json_pairs(text: str) -> list[QA] | None:
    """The pairs of a text that begins as JSON, complete objects only; None if it has none or is another format."""
    text = _THOUGHT.sub("", _THINKING.sub("", text))
    if not _JSON_BEGINS.match(text):
        return None
    pairs = []
    for match in _JSON_PAIR.finditer(text):
        try:
            question, answer = (json.loads(part, strict=False).strip() for part in match.groups())
        except ValueError:
            continue  # an invalid escape
        if question and answer and not _PLACEHOLDER.fullmatch(question) and not _PLACEHOLDER.fullmatch(answer):
            pairs.append(QA(Q=question, A=answer))
    return pairs or None


def question_key(question: str) -> str:
    """The case-folded letters and digits of a question: the key for repeated questions."""
    return "".join(c for c in question.casefold() if c.isalnum())


def _normal(text: str) -> str:
    """Normalizes line ends, removes reasoning, and moves every marker to the start of a line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _THOUGHT.sub("", _THINKING.sub("", text))
    text = _INLINE.sub("\n", text)
    return _INLINE_ANSWER.sub(r"\1\n", text)


def _drafts(text: str) -> list[_Draft]:
    lines = text.split("\n")
    if any(_QUESTION.match(line) for line in lines):
        return _marked(lines)
    return _listed(lines)


def _marked(lines: list[str]) -> list[_Draft]:
    """Parses grammar B and the requested format, where questions have a Q marker.

    The first marker decides whether questions are numbered. A marker of the other kind counts only if its own answer
    marker follows; else it is text ("Q: heat" in an answer).
    """
    drafts: list[_Draft] = []
    numbered: bool | None = None
    for i, line in enumerate(lines):
        question = _QUESTION.match(line)
        if question:
            kind = question["no"] is not None
            if kind == numbered or _answered(lines, i + 1, _QUESTION):
                numbered = kind if numbered is None else numbered
                drafts.append(_open(question))
                continue
            if numbered is None and kind:  # a numbered question, cut off at the end of the text
                numbered = kind
                drafts.append(_open(question))
                continue
        if drafts:
            _continue(drafts[-1], line)
    return drafts


def _listed(lines: list[str]) -> list[_Draft]:
    """Parses grammar A: a numbered line is a question if an answer marker follows before the next numbered line."""
    drafts: list[_Draft] = []
    for i, line in enumerate(lines):
        numbered = _NUMBERED.match(line)
        if numbered and _answered(lines, i + 1, _NUMBERED):
            drafts.append(_open(numbered))
        elif drafts:
            _continue(drafts[-1], line)
    if drafts and (tail := drafts[-1].answer):
        _split_unanswered(drafts, tail)
    return drafts


def _answered(lines: Sequence[str], first: int, another: re.Pattern[str]) -> bool:
    """Whether an answer marker follows within three lines of text from ``first``, before ``another`` question."""
    seen = 0
    for place in range(first, len(lines)):
        line = lines[place]
        if _ANSWER.match(line):
            return True
        if line.strip():
            seen += 1
            if seen == 3 or another.match(line):
                return False
    return False


def _split_unanswered(drafts: list[_Draft], tail: list[str]) -> None:
    """Moves a last numbered question without an answer, cut off by the text's end, out of the previous answer."""
    next_number = str(int((drafts[-1].number or "0")[-9:]) + 1)
    for i, line in enumerate(tail):
        numbered = _NUMBERED.match(line)
        starts_block = i > 0 and not tail[i - 1].strip()
        if (
            numbered
            and starts_block
            and numbered["no"] == next_number
            and not any(part.strip() for part in tail[i + 1 :])
        ):
            del tail[i:]
            drafts.append(_open(numbered))
            return


def _open(marker: re.Match[str]) -> _Draft:
    return _Draft(number=marker["no"], question=[_unbold(marker)])


def _continue(draft: _Draft, line: str) -> None:
    answer = _ANSWER.match(line)
    if answer and draft.answer is None:
        draft.answer = [_unbold(answer)]
    elif draft.answer is None:
        draft.question.append(line)
    else:
        draft.answer.append(line)


def _unbold(marker: re.Match[str]) -> str:
    """The text after a marker, without the closing half of bold that opened before the marker."""
    groups = marker.groupdict()
    text, opened = marker["text"], "".join(c for c in marker["deco"] if c in "*_")
    if not opened or marker["close"] or groups.get("early") or groups.get("early2"):
        return text
    if text.rstrip().endswith(opened):
        return text.rstrip()[: -len(opened)]
    return text.replace(opened, "", 1)


def _pair(draft: _Draft, last: bool) -> QA | None:
    """The draft as a pair; None if the question or the answer is missing or a placeholder of the format."""
    answer = "\n".join(draft.answer or [])
    question, answer = (
        "\n".join(draft.question).strip(),
        (_without_farewell(answer) if last else answer).strip(),
    )
    if wrapped := re.fullmatch(r"(\*\*|__)(.+)\1", question, re.S):
        question = wrapped[2].strip()
    if not question or not answer or _PLACEHOLDER.fullmatch(question) or _PLACEHOLDER.fullmatch(answer):
        return None
    return QA(Q=question, A=answer)


def _without_farewell(answer: str) -> str:
    paragraphs = re.split(r"\n\s*\n", answer)
    for i, paragraph in enumerate(paragraphs[1:], start=1):
        if _FAREWELL.match(paragraph):
            return "\n\n".join(paragraphs[:i])
    lines = answer.rstrip().split("\n")
    if len(lines) > 1 and re.fullmatch(r"\W*END\W*|-{3,}|```", lines[-1].strip()):
        return "\n".join(lines[:-1])
    return answer


def _distinct(pairs: list[QA]) -> list[QA]:
    seen: set[str] = set()
    kept = []
    for pair in pairs:
        key = question_key(pair["Q"])
        if key and key not in seen:
            seen.add(key)
            kept.append(pair)
    return kept
