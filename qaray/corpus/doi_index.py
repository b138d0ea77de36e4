"""Index of dois and their origin: finds duplicates across the corpus without holding it in memory."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qaray.corpus.doi import doi_key
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.errors import Damaged, RunError, RunRefused
from qaray.run.inventory import cure
from qaray.run.storage import Location, in_threads

IDS = ("doi", "file", "position", "digest")
AGAIN = "again"  # verdict on a record that an earlier start has ingested
CHANGED = "changed"  # the same, with another text
NOT_STORED = (AGAIN, CHANGED)
SHOWN = 5  # dois in a message


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
    changed: int = 0  # papers with another text in the input than in the run
    changed_dois: list[str] = field(default_factory=list)  # of the first ones
    to_redo: set[str] = field(default_factory=set)  # keys of the papers that this start found changed
    unsettled: list[str] = field(default_factory=list)  # files that changed each time they were read
    damaged: str = ""  # why the inventory was made again

    def notes(self) -> list[str]:
        """Sentences on what the user should know: ``3 papers: title was not a string and is left out``."""
        counted = sorted(self.left_out.items())
        notes = [f"{papers} paper{'s' * (papers != 1)}: {what} and is left out" for what, papers in counted]
        if self.damaged:
            notes.append(self.damaged)
        for file in self.unsettled:
            notes.append(f"{file} changed while it was read: rerun the command to read what was added")
        return notes


class DoiIndex:
    """An index on disk (SQLite), so that memory does not grow with the corpus."""

    def __init__(self, inputs: set[str], read: Collection[str] = ()) -> None:
        self._inputs, self._read = inputs, frozenset(read)
        self._folder = tempfile.TemporaryDirectory(prefix="qaray-")
        self.changed: dict[str, list[str]] = {}  # dois of papers with another text than in the run, by file
        self._db = sqlite3.connect(Path(self._folder.name) / "ids.sqlite", isolation_level=None)
        columns = "key TEXT PRIMARY KEY, file TEXT, position INT, digest TEXT, now INT"
        with self._space():
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.execute(f"CREATE TABLE papers ({columns}) WITHOUT ROWID")
        self.counts = Ingested()

    @classmethod
    def of(cls, run: Run, inputs: set[str], read: Collection[str]) -> DoiIndex:
        """The index of the papers that the run has already ingested. Raises RunRefused if one is stored twice.

        Args:
            run: The run directory.
            inputs: Paths of the input files of this start.
            read: Paths of those that it reads; without any, only the counts are loaded.
        """
        index, counts_alone = cls(inputs, read), not read
        papers, rejected = run.paper_shards(), run.rejected_shards()
        columns = ["row", "tokens", "doi"] if counts_alone else ["row", "tokens", *IDS]
        hashes = [np.empty(0, np.uint64)]
        for rows in in_threads(lambda shard: _read(run, shard, columns), papers):
            index._count(rows)
            if counts_alone:
                hashes.append(_hashes(rows))
            else:
                index._add(rows)
        distinct = len(np.unique(np.concatenate(hashes))) if counts_alone else index._size()
        if distinct < index.counts.papers:
            _refuse_copies(run)
        for rows in in_threads(lambda shard: _read(run, shard, ["what"]), run.left_out_shards()):
            index.counts.left_out.update(rows["what"].to_pylist())
        index.counts.rejected = sum(in_threads(lambda shard: _read(run, shard, ["doi"]).num_rows, rejected))
        there = (*run.papers.files(".parquet"), *run.rejected_papers.files(".parquet"))
        index.counts.shards = max((1 + _number(shard) for shard in there), default=0)
        return index

    def __enter__(self) -> DoiIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    @contextlib.contextmanager
    def _space(self) -> Iterator[None]:
        """Raises RunError where the temporary folder has no room for the index."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunError(f"{self._folder.name}: {error}: set TMPDIR to a folder with more space") from None

    def _add(self, rows: pa.Table) -> None:
        dois, *places = (rows[name].to_pylist() for name in IDS)
        rows_of_index = zip(map(doi_key, dois), *places, strict=True)
        with self._space():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR IGNORE INTO papers VALUES (?, ?, ?, ?, 0)", rows_of_index)
            self._db.execute("COMMIT")

    def _size(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM papers").fetchone()[0])

    def _count(self, rows: pa.Table) -> None:
        self.counts.papers += rows.num_rows
        self.counts.tokens += int(pc.sum(rows["tokens"]).as_py() or 0)
        self.counts.next_row = max(self.counts.next_row, pc.max(rows["row"]).as_py() + 1)

    def judge(self, ids: list[tuple[str | None, str, int, str | None, str | None]], room: int | None) -> list[str]:
        """A verdict for each record, up to ``room`` records.

        The verdict is '' for a new paper, AGAIN for one that was ingested before, CHANGED for one that had another text
        then, else the reason of the rejection. Each entry of ``ids`` is (doi, file, position, digest, reason).
        """
        with self._space():
            self._db.execute("BEGIN")
            verdicts = [self._verdict(*record) for record in ids[:room]]
            self._db.execute("COMMIT")
        return verdicts

    def _verdict(self, doi: str | None, file: str, position: int, digest: str | None, reason: str | None) -> str:
        if reason is not None:
            return reason
        assert doi is not None  # an accepted record has one
        key = doi_key(doi)
        entry = (key, file, position, digest)
        if self._db.execute("INSERT OR IGNORE INTO papers VALUES (?, ?, ?, ?, 1)", entry).rowcount:
            return ""
        first_file, first_position, first_digest, now = self._db.execute(
            "SELECT file, position, digest, now FROM papers WHERE key = ?", (key,)
        ).fetchone()
        # A paper of an earlier start, seen for the first time in this one: in the same file, or the file was moved, or
        # exchanged with another one that is read again, too.
        exchanged = first_file in self._read and digest == first_digest
        if not now and (first_file == file or first_file not in self._inputs or exchanged):
            place = (file, position, key)
            self._db.execute("UPDATE papers SET now = 1, file = ?, position = ? WHERE key = ?", place)
            if digest == first_digest:
                return AGAIN
            self.changed.setdefault(file, []).append(doi)
            return CHANGED
        return f"record {first_position} of {first_file} has the same doi"


def _read(run: Run, shard: Location, columns: list[str]) -> pa.Table:
    try:
        return shard.read_table(columns)
    except Damaged as damage:
        raise Damaged(shard, damage.what, cure(run)) from None


def _hashes(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of each paper's key: eight bytes for each of ten million papers."""
    keys = (doi_key(doi).encode("utf-8", "surrogatepass") for doi in rows["doi"].to_pylist())
    hashes = (hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.fromiter((int.from_bytes(each, "little") for each in hashes), np.uint64, rows.num_rows)


def _refuse_copies(run: Run) -> None:
    """Raises RunRefused with the papers that are stored more than once."""
    shards = run.paper_shards()
    every = np.concatenate([_hashes(shard.read_table(["doi"])) for shard in shards])
    hashes, times = np.unique(every, return_counts=True)
    twice = set(hashes[times > 1].tolist())
    keys: Counter[str] = Counter()
    for shard in shards:
        rows = shard.read_table(["doi"])
        found = zip(rows["doi"].to_pylist(), _hashes(rows).tolist(), strict=True)
        keys.update(doi_key(doi) for doi, key in found if key in twice)
    if copies := [key for key, number in keys.items() if number > 1]:
        named = ", ".join(copies[:SHOWN]) + (", …" if len(copies) > SHOWN else "")
        raise RunRefused(
            f"{len(copies)} papers are stored more than once in {run.papers} ({named}): `qaray status {run.root} "
            "--repair` removes the copies"
        )


def _number(shard: Location) -> int:
    return int("".join(c for c in stem_of(shard.name) if c.isdigit()))
