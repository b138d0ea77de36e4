"""Ingest: input files → OUT/papers shards, read once.

    files → records (one task per file) → token counts (parallel) → duplicates removed, in order → shards

The driver handles ids only. Later stages read the shards. A resumed run reads the files that were not read to their end
or have changed, and adds new papers. What changes while it is read is read again.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qaray.corpus.doi import doi_key
from qaray.corpus.doi_index import NOT_STORED, DoiIndex, Ingested
from qaray.corpus.inputs import fingerprints, input_files, read_entry, unchanged, unread
from qaray.corpus.readers.dispatch import read_records
from qaray.corpus.records import Problem, doi_of, paper_fields
from qaray.run.cluster import LIGHT, in_order
from qaray.run.directory import SHARD, Run
from qaray.run.errors import RunError
from qaray.run.events import log_event
from qaray.run.inventory import Inventory
from qaray.run.rejects import rejection_summary, write_rejected_records
from qaray.run.storage import Location
from qaray.run.tries import GIVEN_UP, Guard, Tries
from qaray.schema import (
    LEFT_OUT_SCHEMA,
    PAPER_SCHEMA,
    REJECTED_SCHEMA,
    Flaw,
    LeftOut,
    RejectReason,
    arrow_type,
    table,
)

BLOCK_BYTES = 32 << 20  # maximum text of a block before it is written to a shard
TEXTS_COUNTED = 16  # texts per tokenizer call: the tokenizer needs many times their memory
READS = 3  # of a file that changes while it is read, in one start
WRITES_AHEAD = 8  # shards that are written while the next blocks are processed

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Intake:
    """What to ingest, and how to read it."""

    pattern: str  # a file, a folder, a glob or a URI
    papers_per_shard: int
    limit: int | None = None  # maximum number of records to read
    fields: Callable[[Any], dict[str, Any]] = paper_fields  # extracts the fields of a record; raises Problem
    schema: pa.Schema = PAPER_SCHEMA  # schema of the shards
    redo: bool = False  # files with changed papers are left to be read again

    @property
    def staged_schema(self) -> pa.Schema:
        """Schema of papers and rejected records before they are separated. ``reason`` is null for a paper."""
        notes = ("left_out", pa.list_(arrow_type(Flaw)))
        return pa.schema([*self.schema, ("reason", pa.string()), ("detail", pa.string()), notes])


def ingest(
    intake: Intake,
    run: Run,
    count_tokens: CountTokens,
    should_stop: Callable[[], bool],
    report: Callable[[Ingested], None],
    check: Callable[[], None] = lambda: None,
) -> Ingested:
    """Reads the intake into ``run.papers`` and returns its counts; ``report`` is called as shards are written.

    If ``should_stop`` returns True, it returns early, and the files count as unread. ``check`` raises Superseded once
    another driver has taken over. Raises FileNotFoundError if the pattern matches no file, Damaged if a shard is not
    what was written, RunError if no record is a valid paper, after writing rejected.jsonl.
    """
    files = input_files(intake.pattern, run)
    inventory = Inventory.of(run)
    for problem in inventory.problems(run):
        raise problem
    found = fingerprints(files)
    redone = {entry["file"] for entry in inventory.files if intake.redo and entry.get("changed")}
    known = [entry for entry in inventory.files if entry["file"] not in redone]
    fresh = unread(files, known, found)
    if fresh:
        run.unfinish()  # outdated once papers are added
        inventory.begin(run, {file.path for file in fresh})
    before = {file.path: entry for file, entry in zip(files, found, strict=True)}
    counts = Ingested()
    for attempt in range(1, READS + 1):
        reading = {file.path for file in fresh}
        _forget_rejects(run, reading)
        with DoiIndex.of(run, {file.path for file in files}, reading) as index:
            counts = index.counts
            if fresh and not _read(intake, run, fresh, index, count_tokens, should_stop, report):
                break  # stopped: nothing counts as read
            changed = index.changed
            counts.to_redo = {doi_key(doi) for dois in changed.values() for doi in dois}
        if not fresh:
            break
        check()
        fresh = _note_read(intake, run, inventory, fresh, before, changed)
        if not fresh:
            break
        counts.unsettled = [file.path for file in fresh]
        present = [file for file in fresh if file.exists()]
        before.update({file.path: entry for file, entry in zip(present, fingerprints(present), strict=True)})
        fresh = present if attempt < READS else []
    counts.sources, counts.damaged = inventory.files, inventory.damaged
    counts.changed, counts.changed_dois = inventory.changed, inventory.changed_dois
    if counts.papers == 0 and not should_stop():
        write_rejected_records(run)
        first = next((row["detail"] for row in run.rejected_records()), "")
        raise RunError(f"no paper could be read from {intake.pattern}: {rejection_summary(counts.rejected, first)}")
    return counts


def _note_read(
    intake: Intake,
    run: Run,
    inventory: Inventory,
    files: list[Location],
    before: dict[str, dict[str, Any]],
    changed: dict[str, list[str]],
) -> list[Location]:
    """Writes into the inventory what was read; returns the files that changed meanwhile.

    ``changed``: dois of papers whose text is another than in the run, by file.
    """
    entries = list(in_order(_read_entry, None, ((file,) for file in files), ahead=64))
    same = unchanged([before[file.path] for file in files], entries)
    read = []
    for file, entry, whole in zip(files, entries, same, strict=True):
        dois = changed.get(file.path, [])
        complete = whole and intake.limit is None and not (intake.redo and dois)
        read.append({**before[file.path], **(entry or {}), "complete": complete, "changed": len(dois)})
        inventory.note_changed(dois)
    paths = {file.path for file in files}
    inventory.files = [entry for entry in inventory.files if entry["file"] not in paths] + read
    inventory.add_shards(run)
    inventory.write(run)
    return [file for file, whole in zip(files, same, strict=True) if not whole]


def _read_entry(_: None, file: Location) -> dict[str, Any] | None:
    return read_entry(file)


def _read(
    intake: Intake,
    run: Run,
    files: list[Location],
    index: DoiIndex,
    count_tokens: CountTokens,
    should_stop: Callable[[], bool],
    report: Callable[[Ingested], None],
) -> bool:
    """Reads the files, up to ``intake.limit`` records; False if ``should_stop`` ended it early."""
    import ray

    identify = ray.remote(_identify).options(num_cpus=LIGHT)
    write = ray.remote(_write).options(num_cpus=LIGHT, max_retries=3)
    done, seen = index.counts, 0
    pending: deque[tuple[Any, Any]] = deque()
    writing: deque[Any] = deque()

    def schedule_write(block: Any, ids: Any) -> None:
        """Judges the records of a block and starts the task that writes it."""
        nonlocal seen
        room = None if intake.limit is None else intake.limit - seen
        verdicts = index.judge(ray.get(ids), room)
        seen += len(verdicts)
        kept = sum(v == "" for v in verdicts)
        rejected = sum(v not in NOT_STORED and v != "" for v in verdicts)
        if kept or rejected:
            name = SHARD.format(done.shards)
            writing.append(write.remote(block, verdicts, run, name, done.next_row, intake.schema))
            done.shards += 1
            done.next_row += kept
            done.papers += kept
            done.rejected += rejected
            report(done)
        wait_for_writes(WRITES_AHEAD)

    def wait_for_writes(keep_writing: int) -> None:
        while len(writing) > keep_writing:
            tokens, left_out = ray.get(writing.popleft())
            done.tokens += tokens
            done.left_out.update(left_out)

    def limit_reached() -> bool:
        return intake.limit is not None and seen >= intake.limit

    for bundle in _staged(files, count_tokens, intake, Tries.of(run)).iter_internal_ref_bundles():
        for entry in bundle.blocks:
            pending.append((entry.ref, identify.remote(entry.ref)))
            if len(pending) > 2:
                schedule_write(*pending.popleft())
        if limit_reached() or should_stop():
            break
    while pending and not limit_reached() and not should_stop():
        schedule_write(*pending.popleft())
    wait_for_writes(0)
    return not should_stop()


def _staged(files: list[Location], count_tokens: CountTokens, intake: Intake, tries: Tries) -> Any:
    """Dataset of staged rows, in the order (file, position)."""
    import ray

    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items([{"file": f.path} for f in files], override_num_blocks=len(files))
        dataset = dataset.map_batches(
            _FileReader(files[0].fs, intake, tries),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=LIGHT,
            zero_copy_batch=True,
        )
        dataset = dataset.repartition(target_num_rows_per_block=intake.papers_per_shard, strict=True)
        return dataset.map_batches(
            _TokenCounter(count_tokens, tries),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=LIGHT,
            zero_copy_batch=True,
        )


@dataclass(frozen=True)
class _FileReader:
    """Reads files into staged tables of at most papers_per_shard rows or about BLOCK_BYTES of text."""

    fs: Any
    intake: Intake
    tries: Tries

    def __call__(self, files: pa.Table) -> Iterator[pa.Table]:
        for path in files["file"].to_pylist():
            with self.tries.starting(path, f"reading {path}"):
                yield from self._tables(path)

    def _tables(self, path: str) -> Iterator[pa.Table]:
        rows: list[dict[str, Any]] = []
        size = 0
        for record in read_records(Location(self.fs, path)):
            row = self._stage(path, record.position, record.value, record.problem)
            rows.append(row)
            size += len(row["txt"] or "")
            if len(rows) == self.intake.papers_per_shard or size > BLOCK_BYTES:
                yield table(rows, self.intake.staged_schema)
                rows, size = [], 0
        if rows:
            yield table(rows, self.intake.staged_schema)

    def _stage(self, path: str, position: int, value: Any, problem: Problem | None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if problem is None:
            try:
                fields = self.intake.fields(value)
            except Problem as found:
                problem = found
        row: dict[str, Any] = dict.fromkeys(self.intake.staged_schema.names)
        row.update(fields, row=-1, file=path, position=position, tokens=0)
        if problem is None:
            row["digest"] = fields.get("digest") or text_digest(fields["txt"])
        if problem is not None:
            row.update(doi=doi_of(value), reason=str(problem.reason), detail=problem.detail)
        return row


@dataclass(frozen=True)
class _TokenCounter:
    count_tokens: CountTokens
    tries: Tries

    def __call__(self, staged: pa.Table) -> pa.Table:
        """Fills in the column ``tokens``. A paper whose text kills its process becomes a rejected row."""
        keys = [f"{row['file']}\0{row['position']}" for row in staged.select(["file", "position"]).to_pylist()]
        return Guard(self.tries).run(keys, staged, self._counted, _rejected)

    def _counted(self, staged: pa.Table) -> pa.Table:
        texts = [text or "" for text in staged["txt"].to_pylist()]
        tokens: list[int] = []
        for first in range(0, len(texts), TEXTS_COUNTED):
            tokens += self.count_tokens(texts[first : first + TEXTS_COUNTED])
        return staged.set_column(staged.schema.get_field_index("tokens"), "tokens", pa.array(tokens, pa.int64()))


def _rejected(staged: pa.Table) -> pa.Table:
    """Marks rows that killed their process as rejected."""
    for name, value in (("reason", str(RejectReason.PROCESS_KILLED)), ("detail", GIVEN_UP)):
        column = pa.array([value] * staged.num_rows, pa.string())
        staged = staged.set_column(staged.schema.get_field_index(name), name, column)
    return staged


def _identify(staged: pa.Table) -> list[tuple[str | None, str, int, str | None, str | None]]:
    """(doi, file, position, digest, reason) of each staged row."""
    columns = [staged[name].to_pylist() for name in ("doi", "file", "position", "digest", "reason")]
    return list(zip(*columns, strict=True))


def _write(
    staged: pa.Table, verdicts: list[str], run: Run, name: str, first_row: int, schema: pa.Schema
) -> tuple[int, list[str]]:
    """Writes the papers and the rejected records of a block; returns the papers' tokens and their fields left out."""
    staged = staged.slice(0, len(verdicts))
    papers = staged.filter(pa.array([v == "" for v in verdicts]))
    left_out = _left_out(papers)
    for field in left_out:
        log_event("left_out", run, "ingest", field["doi"], detail=field["detail"], file=field["file"])
    if left_out:
        run.write_shard(run.left_out, name, table(left_out, LEFT_OUT_SCHEMA))
    if papers.num_rows:
        rows = pa.array(range(first_row, first_row + papers.num_rows), pa.int64())
        papers = papers.set_column(0, "row", rows).select(schema.names).cast(schema)
        run.write_shard(run.papers, name, papers)
    rejected = [
        {
            "doi": row["doi"],
            "file": row["file"],
            "position": row["position"],
            "stage": "ingest",
            "reason": row["reason"] or str(RejectReason.DUPLICATE_DOI),
            "detail": row["detail"] or verdict,
        }
        for row, verdict in zip(
            staged.select(["doi", "file", "position", "reason", "detail"]).to_pylist(), verdicts, strict=True
        )
        if verdict != "" and verdict not in NOT_STORED
    ]
    for record in rejected:
        place = {"file": record["file"], "position": record["position"]}
        log_event("rejected", run, "ingest", record["doi"], reason=record["reason"], detail=record["detail"], **place)
    if rejected:
        run.write_shard(run.rejected_papers, name, table(rejected, REJECTED_SCHEMA))
    return int(pc.sum(papers["tokens"]).as_py() or 0), [field["what"] for field in left_out]


def _left_out(papers: pa.Table) -> list[LeftOut]:
    """A row for each optional field that the papers of a block had with a wrong type."""
    rows = papers.filter(pc.greater(pc.list_value_length(papers["left_out"]), 0))
    return [
        LeftOut(doi=row["doi"], file=row["file"], position=row["position"], what=flaw["what"], detail=flaw["detail"])
        for row in rows.select(["doi", "file", "position", "left_out"]).to_pylist()
        for flaw in row["left_out"]
    ]


def _forget_rejects(run: Run, files: set[str]) -> None:
    """Removes the rejected records of these files from the shards, before the files are read again."""
    for shard in run.rejected_shards() if files else []:
        rows = shard.read_table()
        kept = rows.filter(pa.array([file not in files for file in rows["file"].to_pylist()], pa.bool_()))
        if kept.num_rows < rows.num_rows:
            run.replace_shard(shard, kept)


def text_digest(txt: str) -> str:
    """Hash of a paper's text: 16 hexadecimal digits."""
    return hashlib.sha256(txt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def forget_papers(run: Run, keys: set[str]) -> None:
    """Removes papers from their shards, so that they are read again. ``keys``: of doi_key."""
    inventory = Inventory.of(run)
    inventory.shards, inventory.changed, inventory.changed_dois = {}, 0, []
    inventory.write(run)
    for shard in run.paper_shards():
        rows = shard.read_table()
        kept = rows.filter(pa.array([doi_key(doi) not in keys for doi in rows["doi"].to_pylist()], pa.bool_()))
        if kept.num_rows < rows.num_rows:
            run.replace_shard(shard, kept)
