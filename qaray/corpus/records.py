"""Validation of input records: the fields of a paper, or the reason for its rejection."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from qaray.schema import Pair, RejectReason, pair_id

_SURROGATE = re.compile("[\ud800-\udfff]")


class Problem(Exception):
    """A record that cannot become a paper. ``args``: the reason and a sentence for the user."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Record:
    """The content at one position of a file: a value, or a problem."""

    position: int  # record number within the file, from 0
    value: Any = None
    problem: Problem | None = None


PAIRS_KEY = "Q&A"
REQUIRED = ("doi", "txt", "keywords")
FIELDS = ("doi", "txt", "keywords", "abstract", "title", "source", PAIRS_KEY)


def paper_fields(value: Any) -> dict[str, Any]:
    """The fields of a paper: doi and txt, keywords as a list; abstract, title and source, which may be None.

    Raises Problem with the reason and a sentence that names the field and its value.
    """
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"a record must be an object, got {type_name(value)}")
    for key in REQUIRED:
        if value.get(key) is None:
            raise Problem(RejectReason.MISSING_KEY, f"{key} is missing" if key not in value else f"{key} is null")
    fields: dict[str, Any] = {"keywords": _keywords(value["keywords"])}
    for key in ("doi", "txt", "abstract", "title", "source"):
        text = value.get(key)
        if text is not None and not isinstance(text, str):
            raise Problem(RejectReason.WRONG_TYPE, f"{key} must be a string, got {type_name(text)}: {str(text)[:80]}")
        fields[key] = text
    if not fields["doi"].strip():
        raise Problem(RejectReason.MISSING_KEY, "doi is empty")
    for key, text in fields.items():
        for part in text if isinstance(text, list) else [text or ""]:
            if bad := _SURROGATE.search(part):
                where = f"character {bad.start()} of {key}"
                raise Problem(RejectReason.UNDECODABLE, f"{where} is not valid Unicode ({bad[0]!a})")
    if not any(c.isprintable() and not c.isspace() for c in fields["txt"]):
        raise Problem(
            RejectReason.EMPTY_TEXT, f"txt has no visible characters ({len(fields['txt'])} characters in total)"
        )
    return fields


def paired_fields(value: Any) -> dict[str, Any]:
    """The fields of a record of processed output: those of a paper, its ``pairs`` and their ``digest``.

    Keywords may be missing. A missing, null or NaN question or answer becomes ''. Raises Problem.
    """
    fields = paper_fields({**value, "keywords": value.get("keywords") or []} if isinstance(value, dict) else value)
    if value.get(PAIRS_KEY) is None:
        raise Problem(RejectReason.MISSING_KEY, f"{PAIRS_KEY} is missing")
    if not isinstance(value[PAIRS_KEY], list):
        raise Problem(RejectReason.WRONG_TYPE, f"{PAIRS_KEY} must be a list, got {type_name(value[PAIRS_KEY])}")
    pairs = _with_ids([_pair(pair, i) for i, pair in enumerate(value[PAIRS_KEY])], fields["doi"])
    return {**fields, "pairs": pairs, "digest": digest(pairs, fields["txt"])}


def _pair(value: Any, number: int) -> Pair:
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"pair {number} must be an object, got {type_name(value)}")
    texts = {}
    for key in ("Q", "A"):
        text = value.get(key)
        text = "" if text is None or text != text else text
        if not isinstance(text, str):
            raise Problem(RejectReason.WRONG_TYPE, f"{key} of pair {number} must be a string, got {type_name(text)}")
        if not encodable(text):
            raise Problem(RejectReason.UNDECODABLE, f"{key} of pair {number} is not valid Unicode")
        texts[key] = text
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


def _keywords(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        raise Problem(RejectReason.WRONG_TYPE, f"keywords must be a list or a string, got {type_name(value)}")
    for keyword in value:
        if not isinstance(keyword, str):
            raise Problem(
                RejectReason.WRONG_TYPE,
                f"keywords must be strings, got {type_name(keyword)}: {str(keyword)[:80]}",
            )
    return [keyword.strip() for keyword in value if keyword.strip()]


def type_name(value: Any) -> str:
    """Name of a JSON value's type, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number")


def encodable(text: str) -> bool:
    """Whether a text has no lone surrogate, so that it can be encoded as UTF-8."""
    return _SURROGATE.search(text) is None
