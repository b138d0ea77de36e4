"""Which doi came from where: global duplicates without the corpus in memory."""

from __future__ import annotations

import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qaray.run.directory import Run
from qaray.run.storage import Location, in_threads

IDS = ("doi", "file", "position")
AGAIN = "again"  # verdict on a record that an earlier start has taken in already


@dataclass
class Ingested:
    """What the shards hold after an ingest."""

    papers: int = 0
    rejected: int = 0
    shards: int = 0  # one past the last shard's number
    next_row: int = 0  # one past the last row id
    tokens: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)


class DoiIndex:
    """On disk (SQLite), so that a corpus of any size needs no memory."""

    def __init__(self, inputs: set[str]) -> None:
        self._inputs = inputs
        self._folder = tempfile.TemporaryDirectory(prefix="qaray-")
        self._db = sqlite3.connect(Path(self._folder.name) / "ids.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE papers (doi TEXT PRIMARY KEY, file TEXT, position INT, now INT) WITHOUT ROWID")
        self.counts = Ingested()
        self.first_reject = ""

    @classmethod
    def of(cls, run: Run, inputs: set[str], counts_alone: bool) -> DoiIndex:
        """The index of what the run holds already. ``inputs``: the files that this start was given; ``counts_alone``:
        nothing will be judged."""
        index = cls(inputs)
        papers, rejected = run.paper_shards(), run.rejected_papers.files(".parquet")
        columns = ["row", "tokens"] if counts_alone else ["row", "tokens", *IDS]
        for rows in in_threads(lambda shard: shard.read_table(columns), papers):
            if not counts_alone:
                index._add(rows)
            index._count(rows)
        index.counts.rejected = sum(in_threads(Location.count_rows, rejected))
        index.counts.shards = max((1 + _number(shard) for shard in (*papers, *rejected)), default=0)
        return index

    def __enter__(self) -> DoiIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def _add(self, rows: pa.Table) -> None:
        columns = [rows[name].to_pylist() for name in IDS]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO papers VALUES (?, ?, ?, 0)", zip(*columns, strict=True))
        self._db.execute("COMMIT")

    def _count(self, rows: pa.Table) -> None:
        self.counts.papers += rows.num_rows
        self.counts.tokens += int(pc.sum(rows["tokens"]).as_py() or 0)
        self.counts.next_row = max(self.counts.next_row, pc.max(rows["row"]).as_py() + 1)

    def judge(self, ids: list[tuple[str | None, str, int, str | None]], room: int | None) -> list[str]:
        """A verdict for each record, at most ``room`` of them: '' = a new paper, AGAIN = taken in before, else why
        it is rejected."""
        self._db.execute("BEGIN")
        verdicts = [self._verdict(*record) for record in ids[:room]]
        self._db.execute("COMMIT")
        bad = (v for v in verdicts if v not in ("", AGAIN))
        self.first_reject = self.first_reject or next(bad, "")
        return verdicts

    def _verdict(self, doi: str | None, file: str, position: int, reason: str | None) -> str:
        if reason is not None:
            return reason
        if self._db.execute("INSERT OR IGNORE INTO papers VALUES (?, ?, ?, 1)", (doi, file, position)).rowcount:
            return ""
        first_file, first_position, now = self._db.execute(
            "SELECT file, position, now FROM papers WHERE doi = ?", (doi,)
        ).fetchone()
        # A paper of an earlier start, met for the first time by this one, in its own file or where that has gone to.
        if not now and (first_file == file or first_file not in self._inputs):
            self._db.execute("UPDATE papers SET now = 1 WHERE doi = ?", (doi,))
            return AGAIN
        return f"record {first_position} of {first_file} has the same doi"


def _number(shard: Location) -> int:
    return int("".join(c for c in shard.name if c.isdigit()))
