"""A JSON list, or a sequence of JSON objects.

The list is decoded value by value from a sliding buffer, so that memory depends on the longest record only. An invalid
record is skipped: reading resumes at the next record that can be found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from qaray.corpus.readers.stream import Buffer
from qaray.corpus.records import Problem, Record
from qaray.run.storage import Location
from qaray.schema import RejectReason

MAX_RECORD_CHARS = 1 << 28  # a longer record counts as invalid
_LOOKAHEAD = 16  # characters: an error this close to the buffer's end may mean that the record continues
_BLANK = re.compile(r"[\s\ufeff]*")
_SEPARATOR = re.compile(r"[\s,]*")
_NEXT_IN_LIST = re.compile(r"\}\s*,\s*(?=\{)")
_NEXT_LINE = re.compile(r"\n\s*(?=\{)")


def json_values(file: Location) -> Iterator[Record]:
    """Yields the values of a JSON list or of a sequence of JSON objects as records."""
    buffer, decoder, position = Buffer(file), json.JSONDecoder(), 0
    lost = False  # no record was found after an invalid one
    first = buffer.skip(_BLANK)
    in_list = first == "["
    if in_list:
        buffer.at += 1
    while True:
        head = buffer.skip(_SEPARATOR)
        if head == "" or (in_list and head == "]"):
            break
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except json.JSONDecodeError as error:
            unread = len(buffer.text) - buffer.at
            may_continue = error.msg.startswith("Unterminated string") or error.pos >= len(buffer.text) - _LOOKAHEAD
            if may_continue and unread < MAX_RECORD_CHARS and buffer.more():
                continue
            detail = f"record {position}: {error.msg}"
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, detail))
            position += 1
            lost = not _resume(buffer, max(error.pos, buffer.at + 1), _NEXT_IN_LIST if in_list else _NEXT_LINE)
            continue
        except (ValueError, RecursionError) as error:  # thousands of digits in an integer or of nesting levels
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, f"record {position}: {error}"))
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
    elif first == "":
        yield Record(0, problem=Problem(RejectReason.NOT_JSON, "the file is empty"))
    elif in_list and head != "]" and not lost:
        yield Record(position, problem=Problem(RejectReason.NOT_JSON, "the list does not end: the file is truncated"))
    elif in_list:
        buffer.at += 1
        if buffer.skip(_BLANK):
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, "text after the end of the list"))


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
