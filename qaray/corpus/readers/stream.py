"""Streams of a file's decompressed bytes and text."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from qaray.corpus.records import Problem
from qaray.run.storage import Location, StoreFailed
from qaray.schema import RejectReason

CHUNK = 1 << 20  # bytes read at a time

Chunks = Iterator[bytes | Problem]


def chunks(file: Location) -> Chunks:
    """Yields the file's decompressed bytes; damaged content ends in a Problem. Raises StoreFailed."""
    try:
        with file.open() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except StoreFailed:
        raise
    except OSError as error:
        yield Problem(RejectReason.UNDECODABLE, f"the file cannot be read: {error}")


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
        """Reads at least as much as is unread, so that a long record is decoded O(log n) times. False at the end."""
        if self.ended:
            return False
        wanted = max(CHUNK, len(self.text) - self.at)
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
