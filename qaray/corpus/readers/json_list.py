"""JSON values one after another; a list stands for its items.

Values are decoded one by one from a sliding buffer, so that memory depends on the longest record only. An invalid
record is skipped: reading resumes at the next record that can be found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from qaray.corpus.readers.stream import Buffer, Chunks
from qaray.corpus.records import Problem, Record
from qaray.schema import RejectReason

MAX_RECORD_CHARS = 1 << 28  # a longer record counts as invalid
_LOOKAHEAD = 16  # characters: an error this close to the buffer's end may mean that the record continues
_SEPARATOR = re.compile(r"[\s,\ufeff]*")
_NEXT_IN_LIST = re.compile(r"\}\s*,\s*(?=\{)")
_NEXT_LINE = re.compile(r"\n\s*(?=\{)")


def json_values(pieces: Chunks) -> Iterator[Record]:
    """Yields the items of the lists, and the objects, that a UTF-8 text has at its top level, as records."""
    buffer, decoder, position = Buffer(pieces), json.JSONDecoder(), 0
    in_list = False
    lost = False  # no record was found after an invalid one
    while head := buffer.skip(_SEPARATOR):
        if head == ("]" if in_list else "["):
            in_list, buffer.at = not in_list, buffer.at + 1
            continue
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except json.JSONDecodeError as error:
            unread = len(buffer.text) - buffer.at
            may_continue = error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text) - _LOOKAHEAD
            if may_continue and unread < MAX_RECORD_CHARS and buffer.more():
                continue
            near = buffer.text[max(buffer.at, error.pos - 20) : error.pos + 20]
            yield Record(position, problem=_problem(position, f"{error.msg}, near {near!r}"))
            position += 1
            lost = not _resume(buffer, max(error.pos, buffer.at + 1), _NEXT_IN_LIST if in_list else _NEXT_LINE)
            continue
        except (ValueError, RecursionError) as error:  # thousands of digits in an integer or of nesting levels
            yield Record(position, problem=_problem(position, str(error)))
            position += 1
            lost = not _resume(buffer, buffer.at + 1, _NEXT_IN_LIST if in_list else _NEXT_LINE)
            continue
        if end == len(buffer.text) and buffer.more():
            continue  # a number may continue in the next chunk
        buffer.at = end
        yield Record(position, value=value)
        position += 1
    if buffer.problem:
        yield Record(position, problem=buffer.problem)
    elif in_list and not lost:
        yield Record(position, problem=Problem(RejectReason.NOT_JSON, "the list does not end: the file is truncated"))


def _problem(position: int, detail: str) -> Problem:
    return Problem(RejectReason.NOT_JSON, f"record {position}: {detail}")


def _resume(buffer: Buffer, start: int, pattern: re.Pattern[str]) -> bool:
    """Moves to the next record after an invalid one. Returns False, at the end of the file, if there is none."""
    buffer.at = start
    while not (match := pattern.search(buffer.text, buffer.at)):
        buffer.at = max(buffer.at, len(buffer.text) - 256)  # a separator may cross the buffer's end
        if not buffer.more():
            buffer.at = len(buffer.text)
            return False
    buffer.at = match.end()
    return True
