"""Validation of input records: the fields of a paper, or the reason for its rejection."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qaray.corpus.doi import doi_key
from qaray.corpus.explain import CONVERT, SHOWN_CHARS, container, got, is_null, listed_keys, missing, same_but_for_case
from qaray.schema import ANSWER_KEYS, QUESTION_KEYS, Flaw, Pair, RejectReason, pair_id

_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]+")  # bytes that were not UTF-8
# Printable characters without a mark: Unicode's default ignorable letters and marks, and the empty Braille pattern.
_UNMARKED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SEMICOLONS = re.compile(r"(?:[^;；&]++|&#?\w{1,8};|&)++")  # texts between semicolons, those of HTML entities apart
_COMMAS = re.compile(r"[，、]|(?<!\d),|,(?!\d)")  # not in numbers, such as the locants of 1,2-dichloroethane


class Problem(Exception):
    """A record that cannot be read. ``args``: the reason and a sentence for the user, encodable and in one line."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        detail = " ".join(detail.encode("utf-8", "replace").decode().split())
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class Record:
    """The content at one position of a file: a value, or a problem."""

    position: int  # record number within the file, from 0
    value: Any = None
    problem: Problem | None = None

    def content(self) -> Any:
        """The value. Raises the problem."""
        if self.problem:
            raise self.problem
        return self.value


PAIRS_KEY = "Q&A"
MAX_OPTIONAL = 1 << 20  # characters of an optional field: it is shown, and keywords are part of prompts
REQUIRED = ("doi", "txt")
OPTIONAL = ("abstract", "title", "source")
FIELDS = (*REQUIRED, "keywords", *OPTIONAL, PAIRS_KEY)


def paper_fields(value: Any) -> dict[str, Any]:
    """The fields of a paper: doi, txt and keywords (a list); abstract, title and source, which may be None.

    An optional field of a wrong type is left out; ``left_out`` is a list of Flaw. Raises Problem with the reason and a
    sentence that names the field and its value.
    """
    value = with_keys(value, REQUIRED, FIELDS)
    doi, txt = required_text(value, "doi"), required_text(value, "txt")
    if not doi_key(doi):
        raise Problem(RejectReason.MISSING_KEY, f"doi is empty: {doi[:SHOWN_CHARS]!r}" if doi else "doi is empty")
    if not has_visible(txt):
        raise Problem(RejectReason.EMPTY_TEXT, f"txt has no visible characters ({len(txt)} characters in total)")
    fields: dict[str, Any] = {"doi": doi, "txt": txt, "left_out": []}
    for key in OPTIONAL:
        text = value.get(key)
        if text is not None and not isinstance(text, str):
            fields["left_out"].append(Flaw(what=f"{key} was not a string", detail=f"{key}: {got(text)}"))
            text = None
        elif text is not None and len(text) > MAX_OPTIONAL:
            fields["left_out"].append(_too_long(key))
            text = None
        fields[key] = text and checked(key, text)
    fields["keywords"], flaw = _keywords(value.get("keywords"))
    fields["left_out"] += flaw
    for key in (*OPTIONAL, "keywords"):
        other = None if key in value else same_but_for_case(key, value)
        if other is not None:
            fields["left_out"].append(Flaw(what=f"{key} is written {other}", detail=f"{key} is written {other}"))
    return fields


def with_keys(value: Any, required: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """The record, if it is an object that has the ``required`` keys, none of them null.

    Raises Problem with a sentence that names those that are missing and those that are there.
    """
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"a record must be an object, {got(value)}")
    lacking = missing(value, required, known)
    if (lacking or not isinstance(value[required[0]], str)) and (layout := container(value, required)):
        raise Problem(RejectReason.WRONG_TYPE, layout)
    if lacking:
        raise Problem(RejectReason.MISSING_KEY, lacking)
    return value


def required_text(value: dict[str, Any], key: str) -> str:
    """The text of a required field. Raises Problem if it is no text."""
    text = value[key]
    if isinstance(text, str):
        return checked(key, text)
    cure = ""
    if key == "doi" and type(text) in (int, float):
        cure = "; write it in quotes: a number loses its zeros"
    elif isinstance(text, list | dict):
        cure = f"; {CONVERT}"
    raise Problem(RejectReason.WRONG_TYPE, f"{key} must be a string, {got(text)}{cure}")


def checked(key: str, text: str) -> str:
    """The text, if it can be encoded as UTF-8. Raises Problem, with the byte and the likely encoding of the file."""
    if encodable(text):
        return text
    bad = _SURROGATE.search(text)
    assert bad
    if not _UNDECODED.match(bad[0]):
        raise Problem(RejectReason.UNDECODABLE, f"character {bad.start()} of {key} is not valid Unicode ({bad[0]!a})")
    raise Problem(
        RejectReason.UNDECODABLE,
        f"{key} is not UTF-8 (byte {ord(bad[0]) - 0xDC00:#04x} at character {bad.start()}): save the file as UTF-8; "
        f"it may be in {likely_encoding(text)}",
    )


def likely_encoding(text: str) -> str:
    """Name of the likely encoding of a text whose bytes that were not UTF-8 are lone surrogates."""
    runs = [run[0] for run in itertools.islice(_UNDECODED.finditer(text), 1000)]
    return "GBK or another encoding of two bytes" if all(len(run) % 2 == 0 for run in runs) else "Latin-1"


def paired_fields(value: Any) -> dict[str, Any]:
    """The fields of a record of processed output: those of a paper, its ``pairs`` and their ``digest``.

    A null or NaN question or answer becomes ''. Raises Problem.
    """
    fields = paper_fields(with_keys(value, (*REQUIRED, PAIRS_KEY), FIELDS))
    if not isinstance(value[PAIRS_KEY], list):
        raise Problem(RejectReason.WRONG_TYPE, f"{PAIRS_KEY} must be a list, {got(value[PAIRS_KEY])}")
    pairs = _with_ids([_pair(pair, i) for i, pair in enumerate(value[PAIRS_KEY])], fields["doi"])
    return {**fields, "pairs": pairs, "digest": digest(pairs, fields["txt"])}


def _pair(value: Any, number: int) -> Pair:
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"pair {number} must be an object, {got(value)}")
    names = {str(key).strip().lower(): key for key in reversed(value)}
    question, answer = (next((names[k] for k in keys if k in names), None) for keys in (QUESTION_KEYS, ANSWER_KEYS))
    others = [key for key in value if key not in (question, answer, "pair_id")]
    if (question is None or answer is None) and (others or question is answer):
        lacking = " and ".join(name for name, key in (("question", question), ("answer", answer)) if key is None)
        raise Problem(RejectReason.MISSING_KEY, f"pair {number} has no {lacking}; keys: {listed_keys(value)}")
    texts = {}
    for name, key in (("Q", question), ("A", answer)):
        text = "" if key is None or is_null(value[key]) else value[key]
        if not isinstance(text, str):
            raise Problem(RejectReason.WRONG_TYPE, f"{key} of pair {number} must be a string, {got(text)}")
        texts[name] = checked(f"{key or name} of pair {number}", text)
    given = value.get("pair_id")
    return Pair(Q=texts["Q"], A=texts["A"], pair_id=given if isinstance(given, str) and encodable(given) else "")


def _with_ids(pairs: list[Pair], doi: str) -> list[Pair]:
    """The pairs with ids. A pair's own id is replaced if it is empty or repeats an earlier one of the paper."""
    seen: set[str] = set()
    found = []
    for ordinal, pair in enumerate(pairs, start=1):
        own = pair["pair_id"].strip()
        own = own if own and own not in seen else pair_id(doi, ordinal)
        seen.add(own)
        found.append(Pair(Q=pair["Q"], A=pair["A"], pair_id=own))
    return found


def digest(pairs: list[Pair], txt: str = "") -> str:
    """Hash of what the scores of a paper depend on: 16 hexadecimal digits."""
    text = json.dumps([[pair["Q"], pair["A"], pair["pair_id"]] for pair in pairs] + [txt])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def doi_of(value: Any) -> str | None:
    """The id of a rejected record, None if it has none."""
    doi = value.get("doi") if isinstance(value, dict) else None
    return doi.encode("utf-8", "replace").decode() if isinstance(doi, str) else None


def _keywords(value: Any) -> tuple[list[str], list[Flaw]]:
    """(keywords, what was left out of them).

    A string is split at its semicolons or, if it has none, at its commas.
    """
    if value is None:
        return [], []
    if isinstance(value, str):
        if len(value) > MAX_OPTIONAL:
            return [], [_too_long("keywords")]
        parts = _SEMICOLONS.findall(value)
        value = parts if parts != [value] else _COMMAS.split(value)
    if not isinstance(value, list):
        return [], [Flaw(what="keywords was not a string or a list of strings", detail=f"keywords: {got(value)}")]
    texts = [each for each in value if isinstance(each, str)]
    if sum(map(len, texts)) > MAX_OPTIONAL:
        return [], [_too_long("keywords")]
    found = [text for each in texts if (text := checked("keywords", each).strip())]
    if len(texts) == len(value):
        return found, []
    wrong = next(each for each in value if not isinstance(each, str))
    detail = f"keywords: {len(value) - len(texts)} of {len(value)} items, {got(wrong)}"
    return found, [Flaw(what="keywords had items that were no strings", detail=detail)]


def _too_long(key: str) -> Flaw:
    return Flaw(what=f"{key} was too long", detail=f"{key}: longer than {MAX_OPTIONAL:,} characters")


def has_visible(text: str) -> bool:
    """Whether a text has a character that leaves a mark: no blank, control or format character, filler or selector."""
    return any(c.isprintable() and not c.isspace() and not _UNMARKED.match(c) for c in text)


def encodable(text: str) -> bool:
    """Whether a text has no lone surrogate, so that it can be encoded as UTF-8."""
    return text.isascii() or _SURROGATE.search(text) is None
