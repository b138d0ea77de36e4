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


def chunks(file: Location) -> Iterator[bytes | Problem]:
    """Yields the file's decompressed bytes; damaged content ends in a Problem. Raises StoreFailed."""
    try:
        with file.open() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except StoreFailed:
        raise
    except OSError as error:
        yield Problem(RejectReason.UNDECODABLE, f"the file cannot be read: {error}")


class Buffer:
    """A sliding window over a file's text. Bytes that are not valid UTF-8 become lone surrogates."""

    def __init__(self, file: Location) -> None:
        self.text, self.at, self.ended = "", 0, False
        self.problem: Problem | None = None
        self._chunks = chunks(file)
        self._decoder: codecs.IncrementalDecoder | None = None

    def more(self) -> bool:
        """Reads at least as much as is unread, so that a long record is decoded O(log n) times. False at the end."""
        if self.ended:
            return False
        wanted = max(CHUNK, len(self.text) - self.at)
        parts = [self.text[self.at :]]
        while wanted > 0 and not self.ended:
            chunk = next(self._chunks, None)
            if chunk is None or isinstance(chunk, Problem):
                self.problem, self.ended = chunk, True
                parts.append(self._decoder.decode(b"", final=True) if self._decoder else "")
            else:
                self._decoder = self._decoder or _decoder(chunk)
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


def _decoder(head: bytes) -> codecs.IncrementalDecoder:
    encoding = json.detect_encoding(head)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    return codecs.getincrementaldecoder(encoding)(errors=errors)
