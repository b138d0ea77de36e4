"""Bounded tries: a row that kills its process is found out and given up, and nothing else with it.

A process that is killed (for its memory, by a crash in native code, with its machine) leaves no word, and Ray runs its
rows again, as often as it takes. So starts are noted in the run directory, and the note goes when the rows are done:
what is found there before a start died so often. By that number a block of rows is run

    0, 1    beside other blocks in its process
    2       alone in its process: it may have died of its neighbours
    3, …    row by row, each alone and with a note of its own; a row is given up after ROW_TRIES deaths

A row that kills its process therefore does so DEATHS times. What only happened to be near it gets its answer, and a
machine that goes away costs a block nothing but its work. The notes are durable, so that the bound holds over restarts
of the driver too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from qaray.run.directory import Run, RunError
from qaray.run.storage import Location

SHARED_TRIES = 2  # of a block, with others in its process
ROW_TRIES = 2  # of a row, alone
DEATHS = SHARED_TRIES + 1 + ROW_TRIES  # of processes, for a row that kills each
START_TRIES = 4  # of what the run cannot do without
GIVEN_UP = f"its process was killed {DEATHS} times (by its memory or a crash in native code, as a rule)"

OnRows = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Tries:
    """Notes of what was begun and not ended. Picklable."""

    folder: Location

    @classmethod
    def of(cls, run: Run) -> Tries:
        return cls(run.root / "tries")

    def begin(self, key: str) -> int:
        """Notes a start; returns how many before it did not end."""
        note = self.folder / f"{key}.json"
        try:
            before = int((note.read_json() or {"starts": 0})["starts"])
        except (ValueError, KeyError, TypeError):
            before = 0
        note.write_json({"starts": before + 1})
        return before

    def end(self, key: str) -> None:
        (self.folder / f"{key}.json").remove()

    def forget(self) -> None:
        """Removes all notes: the run is done."""
        self.folder.remove_folder()

    @contextlib.contextmanager
    def starting(self, name: str, what: str) -> Iterator[None]:
        """Around work that the run cannot do without. Raises RunError once processes died of it START_TRIES times."""
        key = digest([what, name])
        if self.begin(key) >= START_TRIES:
            self.end(key)
            raise RunError(f"{what} killed its process {START_TRIES} times: it may need more memory")
        try:
            yield
        finally:
            self.end(key)


@dataclass(frozen=True)
class Part:
    """Rows of a block that are run together."""

    rows: Sequence[int]  # their places in the block
    alone: bool  # nothing else may run in the process meanwhile
    given_up: bool = False  # not to be run: they killed their process too often


@dataclass
class Guard:
    """What a process keeps to: how each block is run, and that the suspected are alone. For many threads."""

    tries: Tries
    _others: threading.Condition = field(default_factory=threading.Condition)
    _running: int = 0
    _alone: bool = False

    def parts(self, keys: Sequence[str]) -> Generator[Part]:
        """The parts of a block of rows with these keys, each to be done before the next is asked for."""
        if not keys:
            yield Part((), alone=False)
            return
        block = digest(keys)
        known = [block]  # notes that go when the block is done, or when it ends by an error: then the process lives
        try:
            if (died := self.tries.begin(block)) <= SHARED_TRIES:
                yield Part(range(len(keys)), alone=died == SHARED_TRIES)
                return
            for place, key in enumerate(keys):
                row = digest(["row", key])
                known.append(row)
                given_up = self.tries.begin(row) >= ROW_TRIES
                yield Part([place], alone=True, given_up=given_up)
                if not given_up:
                    self.tries.end(known.pop())
        finally:
            for note in known:
                self.tries.end(note)

    def enter(self, part: Part) -> None:
        """Waits until the part may run in this process."""
        with self._others:
            self._others.wait_for(lambda: not self._alone)
            if part.alone:
                self._alone = True  # nobody enters any more
                self._others.wait_for(lambda: self._running == 0)
            else:
                self._running += 1

    def leave(self, part: Part) -> None:
        with self._others:
            if part.alone:
                self._alone = False
            else:
                self._running -= 1
            self._others.notify_all()

    @contextlib.contextmanager
    def running(self, part: Part) -> Iterator[None]:
        """Around the work on a part."""
        self.enter(part)
        try:
            yield
        finally:
            self.leave(part)

    def run(self, keys: Sequence[str], rows: pa.Table, work: OnRows, give_up: OnRows) -> pa.Table:
        """What ``work`` makes of the rows, or ``give_up`` of those that are not to be run."""
        done = []
        for part in self.parts(keys):
            own = rows if len(part.rows) == rows.num_rows else rows.take(list(part.rows))
            if part.given_up:
                done.append(give_up(own))
            else:
                with self.running(part):
                    done.append(work(own))
        return pa.concat_tables(done)


def digest(keys: Sequence[str]) -> str:
    """A file name for keys of any kind."""
    return hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()[:24]
