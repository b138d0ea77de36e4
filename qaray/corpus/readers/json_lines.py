"""JSON Lines: one value per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from qaray.corpus.readers import limits
from qaray.corpus.readers.stream import Chunks
from qaray.corpus.records import Problem, Record, encodable, likely_encoding
from qaray.schema import RejectReason


def json_lines(pieces: Chunks) -> Iterator[Record]:
    """Yields one record per line of UTF-8 text. Blank lines are skipped; an invalid line affects no other.

    Bytes that are not UTF-8 become lone surrogates, so that they cost a record only if they are in one of its fields.
    """
    position = 0
    for number, line in enumerate(_raw_lines(pieces), start=1):
        if isinstance(line, Problem):
            yield Record(position, problem=line)
            return
        if line is None:
            yield Record(position, problem=limits.too_long(f"line {number}"))
            position += 1
            continue
        text = line.decode("utf-8", "surrogateescape").lstrip("\ufeff")  # a mark in the middle: files were joined
        del line
        if not text or text.isspace():
            continue
        yield _record(position, f"line {number}", text)
        position += 1


def _record(position: int, where: str, text: str) -> Record:
    if limits.has_too_many_values(text):
        return Record(position, problem=limits.too_many_values(where))
    try:
        return Record(position, value=json.loads(text))
    except (ValueError, RecursionError) as error:
        return Record(position, problem=_problem(where, text, error))


def _problem(where: str, text: str, error: Exception) -> Problem:
    if not encodable(text):
        return Problem(RejectReason.UNDECODABLE, f"{where} is not UTF-8: it may be in {likely_encoding(text)}")
    return Problem(RejectReason.NOT_JSON, f"{where}: {error}")


def _raw_lines(pieces: Chunks) -> Iterator[bytes | Problem | None]:
    """The lines without their ends; None for a line beyond MAX_RECORD, of which no more than that is kept."""
    rest: list[bytes] = []
    length = 0
    for chunk in pieces:
        if isinstance(chunk, Problem):
            yield chunk
            return
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            yield None if length + len(line) > limits.MAX_RECORD else b"".join((*rest, line))
            rest, length = [], 0
        length += len(tail)
        if length <= limits.MAX_RECORD:
            rest.append(tail)
        else:
            rest = []
    yield None if length > limits.MAX_RECORD else b"".join(rest)
