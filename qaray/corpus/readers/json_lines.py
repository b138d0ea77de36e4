"""JSON Lines: one value per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from qaray.corpus.readers.stream import chunks
from qaray.corpus.records import Problem, Record
from qaray.run.storage import Location
from qaray.schema import RejectReason


def json_lines(file: Location) -> Iterator[Record]:
    """Yields one record per line. Blank lines are skipped; an invalid line affects no other."""
    position = 0
    for number, line in enumerate(_raw_lines(file), start=1):
        if isinstance(line, Problem):
            yield Record(position, problem=line)
            return
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            yield Record(position, value=json.loads(text))
        except UnicodeDecodeError as error:
            yield Record(position, problem=Problem(RejectReason.UNDECODABLE, f"line {number} is not UTF-8: {error}"))
        except (ValueError, RecursionError) as error:
            yield Record(position, problem=Problem(RejectReason.NOT_JSON, f"line {number}: {error}"))
        position += 1
    if position == 0:
        yield Record(0, problem=Problem(RejectReason.NOT_JSON, "the file is empty"))


def _raw_lines(file: Location) -> Iterator[bytes | Problem]:
    rest: list[bytes] = []
    for chunk in chunks(file):
        if isinstance(chunk, Problem):
            yield chunk
            return
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            yield b"".join((*rest, line))
            rest = []
        rest.append(tail)
    yield b"".join(rest)
