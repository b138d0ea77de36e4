"""Bounded tries: a row that kills its process is isolated and given up, and no other row with it.

A killed process (out of memory, a crash in native code, a lost machine) reports no error, and Ray retries its rows
without limit. So each start is recorded in the run directory, and the record is removed when the rows are done: the
starts recorded before a start are earlier deaths. Their number decides how a block of rows is run:

    0, 1    with other blocks in its process
    2       alone in its process: another block may have caused the deaths
    3, …    row by row, each alone and with its own record; a row is given up after ROW_TRIES deaths

A row that kills its process therefore does so DEATHS times. Rows that only ran in the same process are still processed,
and a lost machine costs a block only its work in progress. The records are durable, so that the bound also holds across
restarts of the driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from qaray.run.directory import Run
from qaray.run.errors import RunError
from qaray.run.storage import Location

SHARED_TRIES = 2  # of a block, with other blocks in its process
ROW_TRIES = 2  # of a row, alone
DEATHS = SHARED_TRIES + 1 + ROW_TRIES  # of processes, until a row that kills each of them is given up
START_TRIES = 4  # of work that the run cannot skip
GIVEN_UP = f"its process was killed {DEATHS} times (by its memory or a crash in native code, as a rule)"

OnRows = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Tries:
    """Records of work that began and has not ended. Picklable."""

    folder: Location

    @classmethod
    def of(cls, run: Run) -> Tries:
        return cls(run.root / "tries")

    def begin(self, key: str) -> int:
        """Records a start; returns the number of earlier starts that did not end."""
        record = self.folder / f"{key}.json"
        try:
            before = int((record.read_json() or {"starts": 0})["starts"])
        except (ValueError, KeyError, TypeError):
            before = 0
        record.write_json({"starts": before + 1})
        return before

    def end(self, key: str) -> None:
        (self.folder / f"{key}.json").remove()

    def clear(self) -> None:
        """Removes all records, once the run is done."""
        self.folder.remove_folder()

    @contextlib.contextmanager
    def starting(self, name: str, what: str) -> Iterator[None]:
        """Wraps work that the run cannot skip. Raises RunError after it has killed its process START_TRIES times."""
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
    """Rows of a block that run together."""

    rows: Sequence[int]  # indices in the block
    alone: bool  # no other part may run in the process at the same time
    given_up: bool = False  # not run, because it killed its process too often


@dataclass
class Guard:
    """Decides how each block runs in this process, and runs suspect parts alone. Thread-safe."""

    tries: Tries
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _running: int = 0
    _alone: bool = False

    def parts(self, keys: Sequence[str]) -> Generator[Part]:
        """Yields the parts of a block whose rows have these keys. Finish each part before requesting the next."""
        if not keys:
            yield Part((), alone=False)
            return
        block = digest(keys)
        records = [block]  # removed when the block ends, also by an error: the process is alive then
        try:
            if (deaths := self.tries.begin(block)) <= SHARED_TRIES:
                yield Part(range(len(keys)), alone=deaths == SHARED_TRIES)
                return
            for index, key in enumerate(keys):
                row = digest(["row", key])
                records.append(row)
                given_up = self.tries.begin(row) >= ROW_TRIES
                yield Part([index], alone=True, given_up=given_up)
                if not given_up:
                    self.tries.end(records.pop())
        finally:
            for record in records:
                self.tries.end(record)

    def enter(self, part: Part) -> None:
        """Waits until the part may run in this process."""
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            if part.alone:
                self._alone = True  # no other part may enter
                self._condition.wait_for(lambda: self._running == 0)
            else:
                self._running += 1

    def leave(self, part: Part) -> None:
        with self._condition:
            if part.alone:
                self._alone = False
            else:
                self._running -= 1
            self._condition.notify_all()

    @contextlib.contextmanager
    def running(self, part: Part) -> Iterator[None]:
        """Wraps the work on a part: waits for its turn, and releases it at the end."""
        self.enter(part)
        try:
            yield
        finally:
            self.leave(part)

    def run(self, keys: Sequence[str], rows: pa.Table, work: OnRows, give_up: OnRows) -> pa.Table:
        """The result of ``work`` on the rows, and of ``give_up`` on the rows that are given up, as one table."""
        results = []
        for part in self.parts(keys):
            subset = rows if len(part.rows) == rows.num_rows else rows.take(list(part.rows))
            if part.given_up:
                results.append(give_up(subset))
            else:
                with self.running(part):
                    results.append(work(subset))
        return pa.concat_tables(results)


def digest(keys: Sequence[str]) -> str:
    """A file name for any keys: 24 hexadecimal digits of their hash."""
    return hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()[:24]
