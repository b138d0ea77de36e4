"""JSON values one after another; a list stands for its items.

Values are decoded one by one from a sliding buffer, so that memory depends on the longest record only, which has a
limit. An invalid record is skipped: reading resumes at the next record that can be found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from qaray.corpus.readers import limits
from qaray.corpus.readers.stream import Buffer, Chunks
from qaray.corpus.records import Problem, Record
from qaray.schema import RejectReason

_LOOKAHEAD = 16  # characters: an error this close to the buffer's end may mean that the record continues
_SEPARATOR = re.compile(r"[\s,\ufeff]*+")
_BLANKS = re.compile(r"\s*+")
_BEFORE_OBJECT = {
    "\n": re.compile(r"\n[^\S\n]*+(?=\{)"),
    "}": re.compile(r"\}\s*+,\s*+(?=\{)"),
    ",": re.compile(r",\s*+(?=\{)"),
}


def json_values(pieces: Chunks) -> Iterator[Record]:
    """Yields the items of the lists, and the objects, that a UTF-8 text has at its top level, as records."""
    buffer, decoder, position = Buffer(pieces), json.JSONDecoder(), 0
    in_list = False
    lost = False  # no record was found after an invalid one
    measured = False  # the record at hand is complete and within the limits
    while head := buffer.skip(_SEPARATOR):
        if head == ("]" if in_list else "["):
            in_list, buffer.at = not in_list, buffer.at + 1
            continue
        unread = len(buffer.text) - buffer.at
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:  # also thousands of digits in an integer or of nesting levels
            at = error.pos if isinstance(error, json.JSONDecodeError) else buffer.at
            if not measured and _may_continue(buffer, error):
                if unread < limits.UNCHECKED and buffer.more():
                    continue
                problem = _measure(buffer, f"record {position}") if unread >= limits.UNCHECKED else None
                measured = problem is None
                if measured:
                    continue
                yield Record(position, problem=problem)
            else:
                yield Record(position, problem=_invalid(position, buffer, error))
                behind = "\n" if not in_list else "}" if head in "{[" else ","
                lost = not _resume(buffer, max(at, buffer.at + 1), behind)
            position, measured = position + 1, False
            continue
        if end == len(buffer.text) and unread < limits.UNCHECKED and buffer.more():
            continue  # a number may continue in the next chunk
        buffer.at = end
        yield Record(position, value=value)
        position, measured = position + 1, False
    if buffer.problem:
        yield Record(position, problem=buffer.problem)
    elif in_list and not lost:
        yield Record(position, problem=Problem(RejectReason.NOT_JSON, "the list does not end: the file is truncated"))


def _may_continue(buffer: Buffer, error: Exception) -> bool:
    """Whether an error may come from the buffer's end, and not from the record."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text) - _LOOKAHEAD
    )


def _invalid(position: int, buffer: Buffer, error: Exception) -> Problem:
    detail = str(error)
    if isinstance(error, json.JSONDecodeError):
        detail = f"{error.msg}, near {buffer.text[max(buffer.at, error.pos - 20) : error.pos + 20]!r}"
    return Problem(RejectReason.NOT_JSON, f"record {position}: {detail}")


def _measure(buffer: Buffer, what: str) -> Problem | None:
    """Reads a long record to its end, or that of the file, into the buffer; one beyond the limits is skipped."""
    skimmer, at, problem = limits.Skimmer(), buffer.at, None
    while True:
        at, ends = skimmer.feed(buffer.text, at)
        if problem is None and skimmer.values > limits.MAX_VALUES:
            problem = limits.too_many_values(what)
        if problem is None and at - buffer.at > limits.MAX_RECORD:
            problem = limits.too_long(what)
        if problem is not None:
            buffer.at = at
        if ends:
            return problem
        read = at - buffer.at
        if not buffer.more():
            return problem
        at = buffer.at + read


def _resume(buffer: Buffer, start: int, behind: str) -> bool:
    """Moves to the next object after an invalid record. Returns False, at the end of the file, if there is none.

    It stands ``behind`` a line's end, an object's end and a comma, or a comma alone, and blanks.
    """
    buffer.at = start
    while True:
        if match := _BEFORE_OBJECT[behind].search(buffer.text, buffer.at):
            buffer.at = match.end()
            return True
        last = buffer.text.rfind(behind, buffer.at)
        buffer.at = last + 1 if last >= 0 else len(buffer.text)
        head = buffer.skip(_BLANKS) if last >= 0 else ""  # blanks and a comma may cross the buffer's end
        if behind == "}" and head == ",":
            buffer.at += 1
            head = buffer.skip(_BLANKS)
        elif behind == "}":
            head = ""
        if head == "{":
            return True
        if buffer.at >= len(buffer.text) and not buffer.more():
            return False
