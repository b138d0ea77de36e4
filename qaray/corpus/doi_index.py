"""Index of dois and their origin: finds duplicates across the corpus without holding it in memory."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qaray.corpus.doi import doi_key
from qaray.run.directory import Run
from qaray.run.storage import Location, in_threads

IDS = ("doi", "file", "position")
AGAIN = "again"  # verdict on a record that an earlier start has ingested


@dataclass
class Ingested:
    """Counts of the shards after an ingest."""

    papers: int = 0
    rejected: int = 0
    shards: int = 0  # one past the last shard's number
    next_row: int = 0  # one past the last row id
    tokens: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # papers by Flaw.what of an optional field

    def notes(self) -> list[str]:
        """Sentences on the fields that were left out: ``3 papers: title was not a string and is left out``."""
        counted = sorted(self.left_out.items())
        return [f"{papers} paper{'s' * (papers != 1)}: {what} and is left out" for what, papers in counted]


class DoiIndex:
    """An index on disk (SQLite), so that memory does not grow with the corpus."""

    def __init__(self, inputs: set[str]) -> None:
        self._inputs = inputs
        self._folder = tempfile.TemporaryDirectory(prefix="qaray-")
        self._db = sqlite3.connect(Path(self._folder.name) / "ids.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE papers (key TEXT PRIMARY KEY, file TEXT, position INT, now INT) WITHOUT ROWID")
        self.counts = Ingested()

    @classmethod
    def of(cls, run: Run, inputs: set[str], counts_alone: bool) -> DoiIndex:
        """The index of the papers that the run has already ingested.

        Args:
            run: The run directory.
            inputs: Paths of the input files of this start.
            counts_alone: Load only the counts, for a start that judges no records.
        """
        index = cls(inputs)
        papers, rejected = run.paper_shards(), run.rejected_papers.files(".parquet")
        columns = ["row", "tokens"] if counts_alone else ["row", "tokens", *IDS]
        for rows in in_threads(lambda shard: shard.read_table(columns), papers):
            if not counts_alone:
                index._add(rows)
            index._count(rows)
        for rows in in_threads(lambda shard: shard.read_table(["what"]), run.left_out.files(".parquet")):
            index.counts.left_out.update(rows["what"].to_pylist())
        index.counts.rejected = sum(in_threads(Location.count_rows, rejected))
        index.counts.shards = max((1 + _number(shard) for shard in (*papers, *rejected)), default=0)
        return index

    def __enter__(self) -> DoiIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def _add(self, rows: pa.Table) -> None:
        dois, *places = (rows[name].to_pylist() for name in IDS)
        self._db.execute("BEGIN")
        rows_of_index = zip(map(doi_key, dois), *places, strict=True)
        self._db.executemany("INSERT OR IGNORE INTO papers VALUES (?, ?, ?, 0)", rows_of_index)
        self._db.execute("COMMIT")

    def _count(self, rows: pa.Table) -> None:
        self.counts.papers += rows.num_rows
        self.counts.tokens += int(pc.sum(rows["tokens"]).as_py() or 0)
        self.counts.next_row = max(self.counts.next_row, pc.max(rows["row"]).as_py() + 1)

    def judge(self, ids: list[tuple[str | None, str, int, str | None]], room: int | None) -> list[str]:
        """A verdict for each record, up to ``room`` records.

        The verdict is '' for a new paper, AGAIN for one that was ingested before, else the reason of the rejection.
        Each entry of ``ids`` is (doi, file, position, reason).
        """
        self._db.execute("BEGIN")
        verdicts = [self._verdict(*record) for record in ids[:room]]
        self._db.execute("COMMIT")
        return verdicts

    def _verdict(self, doi: str | None, file: str, position: int, reason: str | None) -> str:
        if reason is not None:
            return reason
        assert doi is not None  # an accepted record has one
        key = doi_key(doi)
        if self._db.execute("INSERT OR IGNORE INTO papers VALUES (?, ?, ?, 1)", (key, file, position)).rowcount:
            return ""
        first_file, first_position, now = self._db.execute(
            "SELECT file, position, now FROM papers WHERE key = ?", (key,)
        ).fetchone()
        # A paper of an earlier start, seen for the first time in this one: in the same file, or the file was moved.
        if not now and (first_file == file or first_file not in self._inputs):
            self._db.execute("UPDATE papers SET now = 1 WHERE key = ?", (key,))
            return AGAIN
        return f"record {first_position} of {first_file} has the same doi"


def _number(shard: Location) -> int:
    return int("".join(c for c in shard.name if c.isdigit()))
