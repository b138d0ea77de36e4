"""Streams of a file's decompressed bytes and text."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from qaray.corpus.readers import limits
from qaray.corpus.records import Problem
from qaray.run.storage import COMPRESSION, Location, StoreFailed
from qaray.schema import RejectReason

CHUNK = 1 << 20  # bytes read at a time
PIECE = 1 << 16  # bytes decompressed at a time: at most as many are lost before damage

Chunks = Iterator[bytes | Problem]


def chunks(file: Location) -> Chunks:
    """Yields the file's decompressed bytes; damaged content ends in a Problem. Raises StoreFailed.

    What could be decompressed before the damage comes before the Problem.
    """
    pieces: list[bytes] = []
    size = total = 0
    problem = None
    try:
        with _decompressed(file) as read:
            while piece := read():
                pieces.append(piece)
                size += len(piece)
                total += len(piece)
                if size >= CHUNK:
                    yield b"".join(pieces)
                    pieces, size = [], 0
    except StoreFailed:
        raise
    except (OSError, EOFError, zlib.error) as error:
        behind = isinstance(error, gzip.BadGzipFile) and total and str(error).startswith("Not a gzipped")
        detail = f"{'behind the end of its gzip data: ' if behind else ''}{error}"
        problem = Problem(RejectReason.UNDECODABLE, f"the file cannot be read: {detail}")
    if pieces:
        yield b"".join(pieces)
    if problem:
        yield problem


@contextlib.contextmanager
def _decompressed(file: Location) -> Iterator[Callable[[], bytes]]:
    """A function that reads the next bytes, at most CHUNK; b"" at the end.

    The gzip module skips zeros behind the last member, which pyarrow does not.
    """
    compression = COMPRESSION.get(os.path.splitext(file.path)[1].lower())
    raw = io.BufferedReader(file.open_raw(), max(CHUNK, PIECE))
    if compression == "gzip":
        with gzip.GzipFile(fileobj=raw, mode="rb") as member:
            yield lambda: member.read1(PIECE)
    elif compression:
        with pa.input_stream(raw, compression=compression) as stream:
            yield lambda: stream.read(PIECE)
    else:
        with raw:
            yield lambda: raw.read(CHUNK)


def utf8_chunks(raw: Chunks) -> Chunks:
    """The same as UTF-8 without the byte order mark at its start, if the file is in UTF-16 or UTF-32.

    Bytes in another encoding are passed through: they cost the records that they are in.
    """
    first = next(raw, b"")
    encoding = "utf-8" if isinstance(first, Problem) else json.detect_encoding(first)
    if isinstance(first, Problem) or encoding.startswith("utf-8"):
        yield first if isinstance(first, Problem) else first.removeprefix(codecs.BOM_UTF8)
        yield from raw
        return
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    chunk: bytes | Problem | None = first
    while chunk is not None:
        if isinstance(chunk, Problem):
            yield chunk
            return
        following = next(raw, None)
        try:
            yield decoder.decode(chunk, final=following is None).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            yield Problem(RejectReason.UNDECODABLE, f"the file is not {encoding.upper()}: {error.reason}")
            return
        chunk = following


class Buffer:
    """A sliding window over UTF-8 text. Bytes that are not valid UTF-8 become lone surrogates."""

    def __init__(self, pieces: Chunks) -> None:
        self.text, self.at, self.ended = "", 0, False
        self.problem: Problem | None = None
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def more(self) -> bool:
        """Reads as much as is unread, so that a record is decoded O(log n) times. False at the end."""
        if self.ended:
            return False
        wanted = max(CHUNK, min(len(self.text) - self.at, limits.MAX_RECORD // 2))
        parts = [self.text[self.at :]]
        while wanted > 0 and not self.ended:
            chunk = next(self._pieces, None)
            if chunk is None or isinstance(chunk, Problem):
                self.problem, self.ended = chunk, True
                parts.append(self._decoder.decode(b"", final=True))
            else:
                parts.append(self._decoder.decode(chunk))
                wanted -= len(chunk)
        self.text, self.at = "".join(parts), 0
        return True

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Skips text that matches; returns the next character, '' at the end of the file."""
        while True:
            match = pattern.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""
