"""JSON Lines: one value per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

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
        text = line.decode("utf-8", "surrogateescape").lstrip("\ufeff")  # a mark in the middle: files were joined
        if not text.strip():
            continue
        try:
            yield Record(position, value=json.loads(text))
        except (ValueError, RecursionError) as error:
            yield Record(position, problem=_problem(f"line {number}", text, error))
        position += 1


def _problem(where: str, text: str, error: Exception) -> Problem:
    if not encodable(text):
        return Problem(RejectReason.UNDECODABLE, f"{where} is not UTF-8: it may be in {likely_encoding(text)}")
    return Problem(RejectReason.NOT_JSON, f"{where}: {error}")


def _raw_lines(pieces: Chunks) -> Iterator[bytes | Problem]:
    rest: list[bytes] = []
    for chunk in pieces:
        if isinstance(chunk, Problem):
            yield chunk
            return
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            yield b"".join((*rest, line))
            rest = []
        rest.append(tail)
    yield b"".join(rest)
