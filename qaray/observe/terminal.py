"""Standard output and standard error that outlive a closed reader (``| head``) and an ASCII terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stream(io.TextIOWrapper):
    """A standard stream whose output is discarded once its reader has gone.

    Work goes on without its reader, and the exit code tells how the work ended.
    """

    reader_gone = False

    def write(self, text: str) -> int:
        return self._survive(lambda: super(Stream, self).write(text), len(text))

    def flush(self) -> None:
        self._survive(super().flush, None)

    def _survive(self, work: Callable[[], T], instead: T) -> T:
        try:
            return work()
        except BrokenPipeError:
            self.reader_gone = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # what is buffered is flushed at exit
            os.close(nowhere)
            return instead


def prepare() -> None:
    """Replaces the process's standard streams by ones that accept all text, whatever is at their other end."""
    with contextlib.ExitStack() as spare:  # closed descriptors: no file that is opened later may take their numbers
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        spare.callback(os.close, number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for the life of the process
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(
                sys,
                name,
                Stream(
                    stream.buffer,
                    encoding=stream.encoding,
                    errors="backslashreplace",
                    line_buffering=stream.line_buffering or name == "stderr",
                ),
            )


def reader_gone() -> bool:
    """Whether nobody reads standard output any more."""
    return getattr(sys.stdout, "reader_gone", False)
