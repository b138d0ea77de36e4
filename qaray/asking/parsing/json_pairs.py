"""Pairs from the JSON of an answer, in whatever shape.

Read are lists and objects, wrappers (``{"qa_pairs": […]}``), numbered keys (``{"Q1": …, "A1": …}``), dialogues
(``{"role": "user", "content": …}``), parallel lists (``{"questions": […], "answers": […]}``) and JSON within a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from qaray.asking.parsing.drafts import asks, is_pair
from qaray.asking.parsing.json_text import Loader, begins_as_json, json_values, quoted_text
from qaray.asking.parsing.marked import marked_pairs
from qaray.asking.parsing.markers import ANSWER_WORDS, QUESTION_WORDS
from qaray.schema import ANSWER_KEYS, QA, QUESTION_KEYS

MAX_DEPTH = 40  # of wrappers around pairs
MAX_STRING = 200_000  # longest string of JSON in which pairs are looked for, characters

_QUOTED_KEY = re.compile(r"[\"'“”]([^\W\d_]{1,12}[ _]?\d{0,3})[\"'“”]\s*:")
_WORDS = (*QUESTION_KEYS, *QUESTION_WORDS), (*ANSWER_KEYS, *ANSWER_WORDS)
_KEY = re.compile(
    r"\W*(?:(?:correct|expected|reference|gold|ground[ _]?truth|final|full|short|long|ideal|generated)[ _-]?(?=\w))?"
    r"(?P<word>.*?)[\s_-]*(?:text|body|content|string)?[\s_#.:()-]*(?P<number>\d{0,9})\W*",
    re.S,
)
_SPEAKER = ("role", "from", "speaker", "author")
_SPEECH = ("content", "value", "text", "message", "parts")
_INNER = ("text", "content", "answer", "output", "response", "question")


def json_pairs(text: str) -> tuple[list[QA], int]:
    """(the pairs of every complete JSON value in ``text``, in order; where the first of these begins). Raises nothing.

    Without pairs, the position is the text's length.
    """
    pairs: list[QA] = []
    begins = len(text)
    loader = Loader()
    for start, value in json_values(text, loader):
        if own := [pair for pair in _pairs(value, 0, loader) if is_pair(pair["Q"], pair["A"])]:
            begins = min(begins, start)
            pairs += own
    if not pairs and (quoted := quoted_text(text)) is not None:
        return json_pairs(quoted)[0], 0
    return pairs, begins


def looks_like_json(text: str) -> bool:
    """Whether a text without pairs is broken JSON: it begins as JSON, or has a key of a question or an answer."""
    return begins_as_json(text) or any(role_of(match[1]) for match in _QUOTED_KEY.finditer(text))


def role_of(key: Any) -> tuple[str, str] | None:
    """("Q" or "A", number or "") of a key such as "question", "Answer 2" or "Q1"; None for another key."""
    match = _KEY.fullmatch(str(key).lower()[:80])
    if match is None:
        return None
    word = match["word"].strip()
    for role, words in zip("QA", _WORDS, strict=True):
        if word in words or (word.endswith("s") and word[:-1] in words):
            return role, match["number"]
    return None


def _pairs(value: Any, depth: int, loader: Loader) -> Iterator[QA]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, dict):
        yield from _pairs_of_object(value, depth, loader)
    elif isinstance(value, list):
        if value and all(isinstance(each, dict) for each in value) and (turns := _turns(value)):
            yield from turns
        elif len(value) == 2 and all(isinstance(each, str) for each in value) and asks(value[0]) and not asks(value[1]):
            yield QA(Q=value[0], A=value[1])
        else:
            yield from _pairs_of_items(value, depth, loader)
    elif isinstance(value, str) and depth and len(value) <= MAX_STRING:
        yield from _pairs_of_text(value, loader)


def _pairs_of_items(items: list[Any], depth: int, loader: Loader) -> Iterator[QA]:
    """Pairs of a list's items; a question and its answer may be items of their own, also as marked text."""
    if items and all(isinstance(item, str) for item in items):
        yield from marked_pairs("\n".join(items)).pairs
        return
    question: str | None = None
    for item in items:
        own = list(_pairs(item, depth + 1, loader))
        yield from own
        sides = {role[0]: item[key] for key in item if (role := role_of(key))} if isinstance(item, dict) else {}
        if own:
            question = None
        elif set(sides) == {"Q"}:
            question = _text(sides["Q"])
        elif set(sides) == {"A"} and question:
            yield QA(Q=question, A=_text(sides["A"]))
            question = None


def _pairs_of_object(value: Mapping[Any, Any], depth: int, loader: Loader) -> Iterator[QA]:
    sides: dict[str, dict[str, Any]] = {}  # number → {"Q": …, "A": …}; the first key of a role wins
    order = sorted(value, key=_rank)
    for key in order:
        if (role := role_of(key)) is not None and not _is_empty(value[key]):
            sides.setdefault(role[1], {}).setdefault(role[0], value[key])
    whole = {number: side for number, side in sides.items() if len(side) == 2}
    if "" in whole and (both := _in_parallel(whole[""]["Q"], whole[""]["A"])):
        yield from both
        return
    if whole:
        # {"instruction": "Write two pairs", "output": […]}: the pairs are in the answer, unless a question is answered
        nested = (
            []
            if any(isinstance(side["Q"], str) and asks(side["Q"]) for side in whole.values())
            else _nested(whole, depth, loader)
        )
        several = [side for side in whole.values() if isinstance(side["Q"], list) and len(side["Q"]) > 1]
        given = {str(key).lower(): part for key, part in value.items()}
        yield from nested or [_pair_of(side, given) for side in whole.values() if side not in several]
        return
    asked = [key for key in value if str(key).rstrip().endswith(("?", "？")) and not _is_empty(value[key])]
    if asked and len(asked) == len(value):
        for key in asked:
            yield QA(Q=_text(str(key)), A=_text(value[key]))
        return
    for part in value.values():
        yield from _pairs(part, depth + 1, loader)


def _rank(key: Any) -> int:
    """Keys in the order of the tables: "question" before "input", where an object has both."""
    word = str(key).lower()
    tables = [*QUESTION_KEYS, *ANSWER_KEYS]
    return tables.index(word) if word in tables else len(tables)


def _pair_of(side: Mapping[str, Any], given: Mapping[str, Any]) -> QA:
    """The pair of one question and answer; an instruction and its input, ``given`` by key, are one question."""
    question = _text(side["Q"])
    if given.get("instruction") and given.get("input") and side["Q"] in (given["instruction"], given["input"]):
        passage = _text(given["input"])
        question = passage if asks(passage) else f"{_text(given['instruction'])}\n{passage}"
    return QA(Q=question, A=_text(side["A"]))


def _in_parallel(questions: Any, answers: Any) -> list[QA]:
    """Pairs of two lists of one length, or of two objects with the same keys."""
    if isinstance(questions, dict) and isinstance(answers, dict) and set(questions) == set(answers):
        questions, answers = list(questions.values()), [answers[key] for key in questions]
    if not isinstance(questions, list) or not isinstance(answers, list) or not len(questions) == len(answers) > 1:
        return []
    return [QA(Q=_text(question), A=_text(answer)) for question, answer in zip(questions, answers, strict=True)]


def _nested(sides: Mapping[str, Mapping[str, Any]], depth: int, loader: Loader) -> list[QA]:
    """The pairs within questions and answers that are no plain texts."""
    pairs: list[QA] = []
    for part in (part for side in sides.values() for part in side.values()):
        pairs += (
            _pairs(part, depth + 1, loader)
            if isinstance(part, (dict, list))
            else _pairs_of_text(str(part), loader, least=2)
        )
    return pairs


def _turns(messages: list[dict[str, Any]]) -> list[QA]:
    """The pairs of a dialogue: a user's turn and the assistant's next one."""
    pairs, asked = [], None
    for message in messages:
        lowered = {str(key).lower(): text for key, text in message.items()}
        speaker = next((str(lowered[key]).lower() for key in _SPEAKER if key in lowered), None)
        speech = next((lowered[key] for key in _SPEECH if key in lowered), None)
        if speaker is None or speech is None:
            return []
        if speaker in ("user", "human", "question", "q", "questioner", "student"):
            asked = _text(speech)
        elif speaker in ("assistant", "gpt", "model", "bot", "answer", "a", "ai", "chatbot", "expert") and asked:
            pairs.append(QA(Q=asked, A=_text(speech)))
            asked = None
    return pairs


def _pairs_of_text(text: str, loader: Loader, least: int = 1) -> list[QA]:
    """Pairs within a string of JSON: JSON again, or at least so many marked pairs."""
    stripped = text.strip()
    value = loader.load(stripped) if stripped[:1] in ("[", "{") else None
    if isinstance(value, (dict, list)):
        return list(_pairs(value, MAX_DEPTH // 2, loader))
    found = marked_pairs(stripped).pairs
    return found if len(found) >= least else []


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _text(value: Any) -> str:
    """A value as text: the lines of a list, the text of an object, a number as written."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, list):
        return "\n".join(text for item in value if (text := _text(item)))
    if isinstance(value, dict):
        inner = next((value[key] for key in _INNER if key in value), None)
        if set(value) == {"value", "unit"}:
            return f"{_text(value['value'])} {_text(value['unit'])}"
        return (
            _text(inner)
            if inner is not None
            else "\n".join(f"{key}: {_text(part)}".rstrip() for key, part in value.items())
        )
    return "" if value is None else str(value)
