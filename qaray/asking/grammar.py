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

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qaray.asking.parsing.json_pairs import json_pairs, looks_like_json
from qaray.asking.parsing.marked import begins_marked, has_questions, marked_pairs
from qaray.asking.parsing.reasoning import answer_text, reasoning_spans
from qaray.schema import CUT_OFF, QA, NoPairs, ParseStatus

OPENING = "Q1:"  # appended to a chat model's prompt: keeps small models within the grammar
END = "END"  # a line with which some models end the answer
MAX_ANSWER = 1 << 20  # characters that are read of an answer; a longer one counts as cut off there


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

_QUESTION, _COLON = r"(?:[*#]{1,4}\s?)?Q(?:uestion)?\s?#?", r"\s*[*_]{0,2}[:：.)]"


def answer_end(text: str, num_qas: int) -> int | None:
    """End of an answer of ``num_qas`` pairs, as a character position in ``text``; None while it is incomplete.

    The answer ends before a question beyond the requested number, if the last requested question and its answer stand
    before it, or before a line END.
    """
    text = text[:MAX_ANSWER]
    end = rf"\n[^\S\n]*(?:(?P<next>{_QUESTION}0*{num_qas + 1}{_COLON})|\W{{0,2}}{END}[*_]*[^\S\n]*(?:\n|$))"
    if not re.search(end, text):
        return None  # engines ask again and again while a model writes: reasoning is looked for at a possible end only
    spans = reasoning_spans(text)
    answer = text[spans[-1][1] if spans else 0 :]
    last_question = rf"(?P<asked>(?:\A|\n)[^\S\n]*{_QUESTION}0*{num_qas}{_COLON})"
    last_answer = rf"(?P<told>\b(?:A|Answer)\s?#?(?:0*{num_qas})?{_COLON})"
    asked = told = False
    for match in re.finditer(f"{last_question}|{end}|{last_answer}", answer):
        if match["asked"]:
            asked, told = True, False
        elif match["told"]:
            told = asked
        elif not match["next"] or told:
            return len(text) - len(answer) + len(answer[: match.start()].rstrip())
    return None


def stop_strings(num_qas: int) -> list[str]:
    """Stop strings for an answer of ``num_qas`` pairs, most likely first. For engines that need fixed strings."""
    after = num_qas + 1
    return [f"\nQ{after}:", f"\n**Q{after}:", f"\nQuestion {after}:", f"\n{END}\n", f"\n**Question {after}:"]


# Parsing

# Phrases of models that decline, at the beginning of the output.
_REFUSAL = re.compile(
    r"\W{0,9}(?:Q\d*:\s*)?(?:(?:unfortunately|sorry|apologies|however|sure|as an? (?:AI|language|large)[^,\n]{0,40})"
    r"[,.! ]+){0,4}(?:(?:I(?:['’]m| am)|we are)\s+(?:\w+\s){0,2}(?:sorry|unable|not able|afraid)"
    r"|I (?:do )?apologi[sz]e\b"
    r"|I\s+(?:\w+\s)?(?:can['’]?t|can ?not|won['’]t|will not|must decline|do(?:n['’]t| not) (?:have|see|feel))"
    r"|(?:please|could you(?: please)?|kindly) (?:provide|share|paste|upload|supply)"
    r"|(?:there is |I see )?no (?:text|paper|article|content)\b"
    r"|it (?:looks|seems|appears) (?:like|that) (?:you|no|the (?:paper|text|article|document|message))\b"
    r"|the (?:paper|text|article) (?:is|was|seems|appears)[^.\n]{0,20} "
    r"(?:missing|empty|not (?:provided|included)|cut off)\W*(?:$|[.,])"
    r"|es tut mir leid|je suis désolée?|lo siento|mi dispiace|desculpe|к сожалению|извините|对不起|抱歉|很抱歉"
    r"|申し訳|죄송)",
    re.I,
)
_SENTENCE_END = re.compile(r"(?:(?<![\n ]\d)[.!?…。！？]|(?<!`)```|\$\$|\|)[)\]}\"'”’*_`]*\s*$")
# The beginning of a marker with which a text was cut off, behind signs on its line.
_CUT_MARKER = re.compile(r"Q(?:u(?:e(?:s(?:t(?:i(?:o(?:n)?)?)?)?)?)?)?\s{0,9}\d{0,9}[*_#]{0,9}\Z")
_LONGEST_CUT_MARKER = 40  # characters


@dataclass(frozen=True)
class ParsedText:
    """The pairs of one text, in order, valid Unicode, and the status of the text."""

    pairs: list[QA]
    status: ParseStatus


def parse_answer(text: str, num_qas: int, finish_reason: str | None = None) -> ParsedText:
    """Parses the question-answer pairs of a model's text.

    Raises nothing: a text without pairs has status MALFORMED. Repeated questions keep their first answer.

    Args:
        text: The generated text.
        num_qas: Number of pairs of a complete answer.
        finish_reason: A FinishReason, if known. If the text was cut off, a last answer that stops in the middle of a
            sentence is dropped.
    """
    cut = finish_reason in CUT_OFF or len(text) > MAX_ANSWER
    answer = answer_text(text[:MAX_ANSWER])
    if cut:
        answer = _without_cut_marker(answer)
    objects, begins = json_pairs(answer)
    if objects and not begins_marked(answer[:begins]):
        return _parsed(objects, num_qas, cut)
    marked = marked_pairs(answer)
    pairs = marked.pairs
    if marked.unanswered:
        cut = True  # a question without an answer at the end
    elif cut and pairs and not _SENTENCE_END.search(pairs[-1]["A"]):
        pairs.pop()
    return _parsed(pairs, num_qas, cut)


def _without_cut_marker(text: str) -> str:
    """A text without the lines of signs, and perhaps the beginning of a marker, with which it ends."""
    marker = _CUT_MARKER.search(text, max(0, len(text) - _LONGEST_CUT_MARKER))
    for end in (marker.start() if marker else len(text), len(text)):
        start = next((place + 1 for place in range(end - 1, -1, -1) if text[place].isalnum()), 0)
        newline = text.find("\n", start, end)
        if newline >= 0:
            return text[:newline]
    return text


def _parsed(pairs: list[QA], num_qas: int, cut: bool) -> ParsedText:
    """Removes repeated questions and sets the status. ``cut``: the text was cut off."""
    pairs = _distinct(pairs)
    if not pairs:
        return ParsedText([], ParseStatus.MALFORMED)
    if len(pairs) >= num_qas:
        return ParsedText(pairs, ParseStatus.COMPLETE)
    return ParsedText(pairs, ParseStatus.TRUNCATED if cut else ParseStatus.SHORT)


def no_pairs(text: str) -> NoPairs:
    """What an output is of which ``parse_answer`` reads no pair."""
    text = text[:MAX_ANSWER]
    if not text.strip():
        return NoPairs.EMPTY
    answer = answer_text(text).strip()
    if not answer:
        return NoPairs.REASONING_ONLY if reasoning_spans(text) else NoPairs.EMPTY
    if looks_like_json(answer):
        return NoPairs.BROKEN_JSON
    if _REFUSAL.match(answer):
        return NoPairs.REFUSED
    return NoPairs.UNANSWERED if has_questions(answer) else NoPairs.PROSE


def question_key(question: str) -> str:
    """The case-folded letters and digits of a question: the key for repeated questions."""
    return "".join(c for c in question.casefold() if c.isalnum())


def _distinct(pairs: list[QA]) -> list[QA]:
    seen: set[str] = set()
    kept = []
    for pair in pairs:
        key = question_key(pair["Q"])
        if key and key not in seen:
            seen.add(key)
            kept.append(QA(Q=_valid(pair["Q"]), A=_valid(pair["A"])))
    return kept


def _valid(text: str) -> str:
    """A text without lone surrogates, which JSON's escapes may write and no file can hold."""
    return text.encode("utf-8", "replace").decode()
