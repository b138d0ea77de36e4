"""Tables of an evaluation: Parquet shards of scores, keyed by paper, and the papers that they still lack.

OUT/evaluation/coverage.parquet/part-000000/<hash>.e000001.parquet …   written during the evaluation, one per block
OUT/evaluation/coverage.parquet/part-000000/merged.e000001.parquet     at the end: each paper once, in the shard's order
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qaray.evaluate.sources import Key
from qaray.run.damage import set_aside
from qaray.run.directory import Run
from qaray.run.epochs import epoch_of, stem_of
from qaray.run.errors import Damaged, RunError
from qaray.run.events import log_event
from qaray.run.storage import Location
from qaray.schema import (
    COVERAGE_SCHEMA,
    GROUNDING_SCHEMA,
    QUESTION_SCHEMA,
    RACAR_SCHEMA,
    SIMILARITY_SCHEMA,
    rows_of,
    table,
)

MERGED = "merged"


@dataclass(frozen=True)
class Table:
    """Rows of one metric: one per pair if ``by_pair`` (none for a paper without pairs), else one per paper."""

    name: str
    schema: pa.Schema
    by_pair: bool = False

    def folder(self, run: Run) -> Location:
        return run.root / f"{self.name}.parquet"

    def files(self, run: Run, shard: str) -> list[Location]:
        """The shard's files that count, the merged one first."""
        files = run.view.counting(self.folder_of(run, shard).files(".parquet"))
        return sorted(files, key=lambda file: (stem_of(file.name) != MERGED, -epoch_of(file.name), file.name))

    def folder_of(self, run: Run, shard: str) -> Location:
        """Folder of the shard's files: listing it stays cheap on an object store."""
        return self.folder(run) / stem_of(shard)

    def write(self, run: Run, shard: str, rows: list[dict[str, Any]]) -> None:
        """Writes the papers' rows. The file name depends on the papers only, so a rerun task overwrites its file."""
        if rows:
            keys = sorted({(row["doi"], row["digest"]) for row in rows})
            name = hashlib.sha256(repr(keys).encode("utf-8", "surrogatepass")).hexdigest()[:16]
            run.write_shard(self.folder_of(run, shard), name, table(rows, self.schema))

    def replace(self, run: Run, shard: str, rows: list[dict[str, Any]]) -> None:
        """Replaces all rows of the shard."""
        before = self.files(run, shard)
        merged = run.write_shard(self.folder_of(run, shard), MERGED, table(rows, self.schema))
        for file in before:
            if file.path != merged.path:
                run.view.remove(file)

    def keep_only(self, run: Run, shards: set[str]) -> None:
        """Removes the rows of all shards other than ``shards``."""
        stems = {stem_of(shard) for shard in shards}
        for folder in self.folder(run).folders():
            if folder.name not in stems:
                for file in run.view.counting(folder.files(".parquet")):
                    run.view.remove(file)

    def done(self, run: Run, shard: str) -> set[tuple[str, str]]:
        """(doi, digest) of the papers that have rows."""
        found: set[tuple[str, str]] = set()
        for columns in self._tables(run, shard, ["doi", "digest"]):
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
        for found in self._tables(run, shard, wanted):
            for row in rows_of(found.filter(pc.is_in(found["doi"], dois))):
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
        files = self.files(run, shard)
        if [stem_of(file.name) for file in files] != [MERGED] or files[0].count_rows() != len(flat):
            self.replace(run, shard, flat)
        return ordered

    def rows(self, run: Run) -> Iterator[Any]:
        """All rows of a finished evaluation, with one shard in memory at a time."""
        view = run.view
        for file in view.counting(self.folder(run).files(".parquet", recursive=True)):
            yield from rows_of(file.read_table())

    def _as_written(self, file: Location, found: pa.Table) -> pa.Table:
        """The table, if its columns have the types of this table. Raises Damaged."""
        for field in found.schema:
            place = self.schema.get_field_index(field.name)
            if place >= 0 and self.schema.field(place).type != field.type:
                raise Damaged(file, f"is not a table of ours (its column {field.name!r} is of type {field.type})")
        return found

    def _tables(self, run: Run, shard: str, columns: list[str] | None) -> Iterator[pa.Table]:
        """The tables of the shard's files. A driver sets damaged ones aside: their papers are measured again."""
        for file in self.files(run, shard):
            try:
                yield self._as_written(file, file.read_table(columns))
            except FileNotFoundError:
                continue  # merged into another since it was listed
            except Damaged as damage:
                if run.epoch is None or not run.epoch.number:
                    cure = "rerun `qaray evaluate`, which measures its papers again"
                    raise Damaged(file, damage.what, cure) from None
                line = set_aside(run, file, damage)
                log_event("damaged", run, self.name, None, WARNING, file=str(file), detail=line)


COVERAGE = Table("coverage", COVERAGE_SCHEMA)
QUESTIONS = Table("questions", QUESTION_SCHEMA)
SIMILARITY = Table("similarity", SIMILARITY_SCHEMA)
RACAR = Table("racar", RACAR_SCHEMA, by_pair=True)
GROUNDING = Table("grounding", GROUNDING_SCHEMA, by_pair=True)
