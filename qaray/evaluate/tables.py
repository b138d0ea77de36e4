"""Tables of an evaluation: Parquet shards of scores, keyed by paper, and the papers that they still lack.

OUT/evaluation/coverage.parquet/part-000000/<hash>.parquet …   written during the evaluation, one file per block
OUT/evaluation/coverage.parquet/part-000000.parquet            merged at the end: every paper once, in the shard's order
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qaray.evaluate.sources import Key
from qaray.run.directory import Run, RunError
from qaray.run.storage import Location
from qaray.schema import COVERAGE_SCHEMA, GROUNDING_SCHEMA, QUESTION_SCHEMA, RACAR_SCHEMA, SIMILARITY_SCHEMA, table


@dataclass(frozen=True)
class Table:
    """Rows of one metric: one per pair if ``by_pair`` (none for a paper without pairs), else one per paper."""

    name: str
    schema: pa.Schema
    by_pair: bool = False

    def folder(self, run: Run) -> Location:
        return run.root / f"{self.name}.parquet"

    def files(self, run: Run, shard: str) -> list[Location]:
        """The shard's merged file, if it exists, and the files written since."""
        merged = self.merged(run, shard)
        return [*([merged] if merged.exists() else []), *self.pieces(run, shard).files(".parquet")]

    def merged(self, run: Run, shard: str) -> Location:
        return self.folder(run) / f"{shard}.parquet"

    def pieces(self, run: Run, shard: str) -> Location:
        """Folder of the shard's files that are not merged yet: listing it stays cheap on an object store."""
        return self.folder(run) / shard

    def write(self, run: Run, shard: str, rows: list[dict[str, Any]]) -> None:
        """Writes the papers' rows. The file name depends on the papers only, so a rerun task overwrites its file."""
        if rows:
            keys = sorted({(row["doi"], row["digest"]) for row in rows})
            name = hashlib.sha256(repr(keys).encode("utf-8", "surrogatepass")).hexdigest()[:16]
            (self.pieces(run, shard) / f"{name}.parquet").write_table(table(rows, self.schema))

    def replace(self, run: Run, shard: str, rows: list[dict[str, Any]]) -> None:
        """Replaces all rows of the shard."""
        self.merged(run, shard).write_table(table(rows, self.schema))
        self.pieces(run, shard).remove_folder()

    def keep_only(self, run: Run, shards: set[str]) -> None:
        """Removes the rows of all shards other than ``shards``."""
        for file in self.folder(run).files(".parquet"):
            if file.name.removesuffix(".parquet") not in shards:
                file.remove()
        for folder in self.folder(run).folders():
            if folder.name not in shards:
                folder.remove_folder()

    def done(self, run: Run, shard: str) -> set[tuple[str, str]]:
        """(doi, digest) of the papers that have rows."""
        found: set[tuple[str, str]] = set()
        for file in self.files(run, shard):
            columns = file.read_table(["doi", "digest"])
            found.update(zip(columns["doi"].to_pylist(), columns["digest"].to_pylist(), strict=True))
        return found

    def owed(self, run: Run, shard: str, keys: list[Key]) -> set[str]:
        """Dois of the shard's papers that lack rows."""
        done = self.done(run, shard)
        return {key.doi for key in keys if (key.doi, key.digest) not in done and (key.pairs or not self.by_pair)}

    def read(self, run: Run, shard: str, keys: list[Key], columns: list[str] | None = None) -> dict[str, list[Any]]:
        """Rows by doi of the papers with these keys; a paper that was measured twice counts once."""
        wanted = None if columns is None else sorted({"doi", "digest", *columns, *(["qa"] if self.by_pair else [])})
        current = {(key.doi, key.digest) for key in keys}
        rows: dict[str, list[Any]] = {}
        seen: set[tuple[str, int]] = set()
        dois = pa.array([key.doi for key in keys], pa.string())
        for file in self.files(run, shard):
            found = file.read_table(wanted)
            for row in found.filter(pc.is_in(found["doi"], dois)).to_pylist():
                key = (row["doi"], row.get("qa", 0))
                if (row["doi"], row["digest"]) in current and key not in seen:
                    seen.add(key)
                    rows.setdefault(row["doi"], []).append(row)
        if self.by_pair:
            for own in rows.values():
                own.sort(key=lambda row: row["qa"])
        return rows

    def merge(self, run: Run, shard: str, keys: list[Key]) -> list[list[Any]]:
        """Merges the shard into one file; returns its rows, one list per paper, in the order of ``keys``.

        Raises RunError if a paper lacks rows.
        """
        rows = self.read(run, shard, keys)
        ordered = [rows.get(key.doi, []) for key in keys]
        for key, own in zip(keys, ordered, strict=True):
            if len(own) != (key.pairs if self.by_pair else 1):
                raise RunError(f"{self.name}: {key.doi} of {shard} has {len(own)} rows; scores would be lost")
        flat = [row for own in ordered for row in own]
        if self.pieces(run, shard).exists() or self._merged_rows(run, shard) != len(flat):
            self.replace(run, shard, flat)
        return ordered

    def _merged_rows(self, run: Run, shard: str) -> int:
        merged = self.merged(run, shard)
        return merged.read_table(["doi"]).num_rows if merged.exists() else -1

    def rows(self, run: Run) -> Iterator[Any]:
        """All rows of a finished evaluation, with one shard in memory at a time."""
        for file in self.folder(run).files(".parquet"):
            yield from file.read_table().to_pylist()


COVERAGE = Table("coverage", COVERAGE_SCHEMA)
QUESTIONS = Table("questions", QUESTION_SCHEMA)
SIMILARITY = Table("similarity", SIMILARITY_SCHEMA)
RACAR = Table("racar", RACAR_SCHEMA, by_pair=True)
GROUNDING = Table("grounding", GROUNDING_SCHEMA, by_pair=True)
