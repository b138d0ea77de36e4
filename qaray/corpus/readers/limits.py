"""Limits of one record, so that no input needs more memory than docs/security.md states."""

from __future__ import annotations

import re

from qaray.corpus.records import Problem
from qaray.schema import RejectReason

MAX_RECORD = 1 << 26  # characters of a record's JSON (bytes, in JSON Lines and in a cell of Parquet)
MAX_VALUES = 1 << 20  # values of a record: each takes about 100 bytes as a Python object
UNCHECKED = 1 << 22  # characters: a record that is not longer cannot have values that take much memory

_INSIDE = re.compile(r'(?:[^"\\]++|\\.)*+', re.S)
_SIGNS = re.compile(rf'"{_INSIDE.pattern}(?P<closed>")?|[\[\]{{}},]', re.S)
_BRACKETS = re.compile(rf'"{_INSIDE.pattern}(?P<closed>")?|[\[\]{{}}]', re.S)


def too_long(what: str) -> Problem:
    return Problem(RejectReason.OVER_LENGTH, f"{what} is longer than {MAX_RECORD >> 20} MiB")


def too_many_values(what: str) -> Problem:
    return Problem(RejectReason.OVER_LENGTH, f"{what} has more than {MAX_VALUES:,} values")


class Skimmer:
    """Finds the end of a JSON value and counts the values in it, without building them. Visits each character once."""

    def __init__(self) -> None:
        self.values = 1  # not counted further beyond MAX_VALUES
        self._depth = 0
        self._quoted = False

    def feed(self, text: str, at: int) -> tuple[int, bool]:
        """(position behind what was read, whether the value ends there). Unless it ends, go on there with more text."""
        if self._quoted:
            match = _INSIDE.match(text, at)
            at = match.end() if match else at
            if not text.startswith('"', at):
                return at, False  # an escape may continue in the next piece
            self._quoted, at = False, at + 1
            if self._depth == 0:
                return at, True
        signs = _BRACKETS if self.values > MAX_VALUES else _SIGNS
        for match in signs.finditer(text, at):
            sign = text[match.start()]
            if sign == '"':
                self._quoted = match["closed"] is None
                if self._quoted:
                    return match.end(), False
            elif sign == ",":
                self.values += 1
            elif sign in "[{":
                self.values += 1
                self._depth += 1
            else:
                self._depth -= 1
            if self._depth <= 0:
                return match.end(), True
        return len(text), False


def has_too_many_values(text: str) -> bool:
    """Whether a JSON text has more than MAX_VALUES values."""
    if len(text) <= UNCHECKED:
        return False
    skimmer = Skimmer()
    skimmer.feed(text, 0)
    return skimmer.values > MAX_VALUES
