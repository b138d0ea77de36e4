"""Reads the records of an input file of any supported format."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence

from qaray.config import ConfigError
from qaray.corpus.explain import CONVERT, beginning
from qaray.corpus.readers.json_lines import json_lines
from qaray.corpus.readers.json_list import json_values
from qaray.corpus.readers.parquet import parquet_rows
from qaray.corpus.readers.stream import Chunks, chunks, utf8_chunks
from qaray.corpus.records import FIELDS, Problem, Record
from qaray.run.globs import expand
from qaray.run.storage import Location
from qaray.schema import RejectReason

FORMATS = (".json", ".jsonl", ".ndjson", ".parquet")
SUFFIXES = tuple(ending + packed for ending in FORMATS for packed in ("", ".gz", ".zst", ".bz2"))
HEAD = 1 << 16  # bytes from which a file's kind is told

# Other formats, by their first bytes or by the file's ending.
_SIGNATURES = {
    b"PAR1": "a Parquet file, whose name must end in .parquet", b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed by gzip: its name must end in .gz", b"\xfd7zXZ": "compressed by xz: unpack it",
    b"BZh": "compressed by bzip2: its name must end in .bz2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: its name must end in .zst",
    b"ARROW1": "an Arrow file", b"SQLite format 3": "a SQLite database", b"<": "XML or HTML",
    b"\x00": "not text: it begins with NUL bytes", b"\x80": "a pickle", b"\x93NUMPY": "a NumPy file",
}  # fmt: skip
_ENDINGS = {
    ".csv": "a CSV table", ".tsv": "a TSV table", ".xlsx": "an Excel table", ".xls": "an Excel table",
    ".md": "Markdown", ".txt": "plain text", ".tex": "LaTeX", ".yaml": "YAML", ".yml": "YAML",
}  # fmt: skip
_BEGINS_AS_JSON = re.compile(
    rb"""(?mx)^[ \t\r]*(?: \{[ \t\r]*(?:["'}]|$)
      | \[[ \t\r]*(?:[\[{\]"]|$|null|true|false|-?[\d.]+[ \t]*(?:,|\][ \t\r]*$)) )"""  # not [1] Smith, J. (2001)
)
_LIST_OR_PRINTED = re.compile(rb"\[\s*(?:[\[{\]]|$)|\{[ \t\r]*\n")


def data_files(pattern: str) -> list[Location]:
    """The files of a path, folder, glob or URI.

    Raises FileNotFoundError if there is none, ConfigError if the only one is of a format that is not read.
    """
    files = expand(pattern, SUFFIXES)
    if len(files) == 1 and not files[0].path.lower().endswith(SUFFIXES):
        problem = _opened(files[0])[2]
        if problem:
            raise ConfigError(problem.detail)
    return files


def read_records(file: Location, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Yields the file's records in order. Invalid content raises nothing; it becomes a Record with a problem.

    JSON is read as it is, whatever the ending: a list, or values one after another. ``columns`` are the columns to read
    from a Parquet file; None reads the fields of a paper with pairs.
    """
    name = file.name.lower()
    if ".parquet" in name:
        return parquet_rows(file, FIELDS if columns is None else columns)
    return _json_records(file, any(ending in name for ending in (".jsonl", ".ndjson")))


def _json_records(file: Location, lines: bool) -> Iterator[Record]:
    head, pieces, problem = _opened(file)
    if problem:
        yield Record(0, problem=problem)
        return
    yield from json_lines(pieces) if lines and not _LIST_OR_PRINTED.match(head) else json_values(pieces)


def _opened(file: Location) -> tuple[bytes, Chunks, Problem | None]:
    """(beginning of the file's text without blanks, its text in UTF-8, a Problem if it is not JSON)."""
    pieces = utf8_chunks(chunks(file))
    first: list[bytes | Problem] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, Problem):
            first.append(piece)
            break
        piece = piece if size else piece.lstrip()
        first.append(piece)
        size += len(piece)
        if size >= HEAD:
            break
    head = b"".join(piece for piece in first if isinstance(piece, bytes))[:HEAD]
    whole = itertools.chain(first, pieces)
    if head:
        return head, whole, None if _BEGINS_AS_JSON.search(head) else _not_json(file, head)
    empty = Problem(RejectReason.NOT_JSON, f"{file.name} is empty")
    return head, whole, next((piece for piece in first if isinstance(piece, Problem)), empty)


def _not_json(file: Location, head: bytes) -> Problem:
    """What a file is that has no JSON value at its beginning."""
    ending = os.path.splitext(file.name.lower())[1]
    kind = next((kind for start, kind in _SIGNATURES.items() if head.startswith(start)), "")
    kind = kind or _ENDINGS.get(ending) or f"not JSON: it begins with {beginning(_text(head))}"
    formats = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} files are read, also packed as .gz, .zst or .bz2"
    return Problem(RejectReason.NOT_JSON, f"{file.name} is {kind}; {formats}; {CONVERT}")


def _text(head: bytes) -> str:
    return head[:200].decode("utf-8", "replace")
