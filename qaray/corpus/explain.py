"""Sentences about records that cannot be read: what is missing, what is there, and what may be meant."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONVERT = "docs/input.md shows how to convert other formats"
SHOWN_CHARS = 80  # of a value
SHOWN_KEYS = 15
MAX_KEYS = 200  # of a record, that are compared with a missing one
# Other names of a field, the likeliest first, in lower case and without signs between letters.
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "doi": (
        "doi", "dois", "paperdoi", "id", "paperid", "docid", "documentid", "corpusid", "s2id", "arxivid", "pmid",
        "pmcid", "pubmedid", "openalexid", "articleid", "customid", "sampleid", "uid", "uuid", "identifier", "key",
        "url", "name", "externalids",
    ),
    "txt": (
        "txt", "text", "fulltext", "bodytext", "body", "maintext", "papertext", "articletext", "rawtext", "plaintext",
        "content", "contents", "article", "paper", "document", "markdown", "md", "passage", "context", "sections",
        "paragraphs",
    ),
    "Q&A": ("qa", "qas", "qapairs", "qalist", "pairs", "questionsanswers", "questionanswerpairs", "questions", "faq"),
    "output": (
        "output", "outputs", "generation", "generations", "generatedtext", "response", "responses", "completion",
        "completions", "prediction", "predictions", "answer", "answers", "result", "choices", "reply", "target",
        "label", "chosen",
    ),
    "instruction": ("instruction", "instructions", "prompt", "question", "query"),
}  # fmt: skip
_WRAPPERS = frozenset(
    ("data", "papers", "records", "rows", "items", "results", "documents", "docs", "articles", "hits", "examples")
)


@dataclass(frozen=True)
class Unreadable:
    """A value of another type system that has no Python value, such as a timestamp of the year 300,000."""

    type: str


def type_name(value: Any) -> str:
    """Name of a JSON value's type, for messages."""
    names = {
        dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes",
        int: "a number", float: "a number",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)


def got(value: Any) -> str:
    """Type and beginning of a value: ``got a number: 704.0001``."""
    if isinstance(value, Unreadable):
        return f"got a value that cannot be read, of type {value.type[:SHOWN_CHARS]}"
    return f"got {type_name(value)}: {beginning(value)}"


def beginning(value: Any) -> str:
    """The first characters of a value as JSON, encodable. A large value is not serialized to its end."""
    return _beginning(value).encode("utf-8", "replace").decode()


def _beginning(value: Any) -> str:
    if isinstance(value, str):
        text = json.dumps(value[:SHOWN_CHARS], ensure_ascii=False)
        return text if len(value) <= SHOWN_CHARS else text[:-1] + "…"
    shown = ""
    try:
        for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
            shown += piece[:SHOWN_CHARS]
            if len(shown) > SHOWN_CHARS:
                return shown[:SHOWN_CHARS] + "…"
    except (TypeError, ValueError, RecursionError):  # keys that are not strings; integers of thousands of digits
        return f"{shown[:SHOWN_CHARS]}…"
    return shown


def is_null(value: Any) -> bool:
    """Whether a value counts as missing: null, or NaN, which pandas writes for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def missing(value: Mapping[str, Any], required: Sequence[str], known: Sequence[str]) -> str:
    """A sentence on the ``required`` keys that a record lacks: which, the keys that are there, likely other names.

    ``known``: all keys that have a meaning, which are no other names of the missing ones. '' if none is missing.
    """
    absent = [key for key in required if key not in value]
    null = [key for key in required if key in value and is_null(value[key])]
    if not absent and not null:
        return ""
    parts = [f"{_listed(keys)} {'is' if len(keys) == 1 else 'are'} {what}" for keys, what in (
        (absent, "missing"), (null, "null")) if keys]  # fmt: skip
    if not absent:
        return " and ".join(parts)
    hints = _hints(absent, [key for key in value if key not in known and isinstance(key, str)])
    return "; ".join([" and ".join(parts), f"keys: {listed_keys(value)}", *hints, CONVERT])


def _hints(absent: Sequence[str], keys: list[str]) -> list[str]:
    hints = []
    for field in absent:
        found = nearest(field, keys)
        if found is not None:
            keys = [key for key in keys if key != found]
            hints.append(f"{_key(found)}: did you mean {field}?")
    return hints


def nearest(field: str, keys: Sequence[str]) -> str | None:
    """The key that is most likely meant to be ``field``: other case or signs, another name, or a misspelling."""
    plain = {_plain(key): key for key in reversed(keys[:MAX_KEYS])}
    for name in (_plain(field), *OTHER_NAMES.get(field, ())):
        if name in plain:
            return plain[name]
    close = difflib.get_close_matches(_plain(field), [name[:40] for name in plain], n=1, cutoff=0.65)
    return plain.get(close[0]) if close else None


def same_but_for_case(field: str, value: Mapping[Any, Any]) -> str | None:
    """The key of a record that differs from ``field`` only in its case or in blanks, for a message."""
    return next((_key(key) for key in value if isinstance(key, str) and _plain(key) == field), None)


def _plain(key: str) -> str:
    return re.sub(r"[\W_]+", "", key).lower()


def listed_keys(value: Mapping[Any, Any]) -> str:
    """The keys of a record, the first SHOWN_KEYS of them, in the words of a message."""
    names = [_key(key) for key, _ in zip(value, range(SHOWN_KEYS), strict=False)]
    more = f" and {len(value) - len(names)} more" if len(value) > len(names) else ""
    return (", ".join(names) or "none") + more


def _key(key: Any) -> str:
    """A key for a message; quoted if it has blanks or other signs that would not be seen."""
    text = str(key)
    plain = text.isprintable() and text == text.strip() and len(text) <= 40 and text != ""
    return text if plain else beginning(text[:40])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def container(value: Mapping[str, Any], required: Sequence[str]) -> str:
    """A sentence if a single object holds all records in another layout; '' if it does not.

    ``required``: the keys of a record. Layouts: a table by columns, numbered records, a list under a key.
    """
    records = "write the records as a list or as JSON Lines: in pandas, to_json(path, orient='records', lines=True)"
    columns = [value[key] for key in required if key in value]
    if columns and all(isinstance(column, dict) and all(map(_is_index, column)) for column in columns):
        return f"the file is a table by columns ({listed_keys(value)}), not a list of records; {records}"
    if len(columns) == len(required) and all(isinstance(column, list) for column in columns):
        return f"the file is a table by columns ({listed_keys(value)}), each a list; {records}"
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return f"the file is a table with columns and data apart (pandas' orient='split'); {records}"
    wrappers: frozenset[str] = frozenset() if any(key in value for key in required) else _WRAPPERS
    path = _path_of_list(value, required, wrappers)
    if path:
        return f"the list of records is under the key {path}: pass the list itself, such as from jq '.{path}' FILE"
    first = next(iter(value.values()), None)
    of_objects = all(isinstance(each, dict) for each in value.values())
    if isinstance(first, dict) and of_objects and (all(map(_is_index, value)) or any(key in first for key in required)):
        return f"the records are values of one object, under the keys {listed_keys(value)}; {records}"
    return ""


def _path_of_list(value: Mapping[str, Any], required: Sequence[str], wrappers: frozenset[str], depth: int = 3) -> str:
    """Dotted path of the first list of objects under one of the keys ``wrappers``, or of objects that are records."""
    for key, inner in value.items():
        is_list = isinstance(inner, list) and len(inner) > 0 and isinstance(inner[0], dict)
        if is_list and (_plain(key) in wrappers or all(name in inner[0] for name in required)):
            return str(key)
        if isinstance(inner, dict) and depth > 1 and (path := _path_of_list(inner, required, wrappers, depth - 1)):
            return f"{key}.{path}"
    return ""


def _is_index(key: Any) -> bool:
    return isinstance(key, str) and key.isdecimal()
