"""Runs a stage of an evaluation until no paper lacks scores, and writes its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from logging import DEBUG, WARNING
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from qaray.evaluate.sources import Source
from qaray.evaluate.tables import Table
from qaray.run.cluster import LIGHT, in_order
from qaray.run.directory import Run
from qaray.run.events import log_event
from qaray.run.lease import Lease
from qaray.run.rounds import Owed, run_rounds
from qaray.run.stopping import StopSignal
from qaray.schema import Paired, ScoreKey, arrow_schema

if TYPE_CHECKING:
    from ray.data import Dataset


ROWS_AT_ONCE = 64  # maximum papers per Arrow table between tasks,
CHARACTERS_AT_ONCE = 100_000_000  # and, unless it is one paper, of their texts: Arrow's lists of strings hold 2 GiB


@dataclass
class Measured:
    """Progress of a running stage."""

    stage: str
    papers: int = 0  # in the source
    done: int = 0  # papers with all scores of this stage
    done_before: int = 0  # of these, before this start
    begun: float = field(default_factory=time.monotonic)  # seconds of the monotonic clock


@dataclass(frozen=True)
class Context:
    """Input of a stage. Picklable."""

    run: Run  # the evaluation's folder
    source: Source
    should_stop: StopSignal

    def papers(self, shard: str) -> list[Paired]:
        """The papers of a shard; an empty list once the run stops."""
        return [] if self.should_stop() else self.source.read(shard)


@dataclass(frozen=True)
class Stage:
    """``flow`` maps rows with a ``shard`` name to rows that count the ``papers`` written to ``tables``."""

    name: str
    tables: tuple[Table, ...]
    flow: Callable[[Dataset], Dataset]


def measure(context: Context, stage: Stage, lease: Lease, report: Callable[[Measured], None]) -> Measured:
    """Runs a stage until every paper has its scores, or a stop is requested; returns the progress.

    ``report`` is called after each block. Raises RunError if a round makes no progress.
    """
    papers, owed = _owed(context, stage.tables)
    progress = Measured(stage.name, papers, papers - owed.papers, papers - owed.papers)
    if owed.papers:
        context.run.unfinish()

    def score(owed: Owed) -> Iterator[None]:
        progress.done = papers - owed.papers
        for done in _round(stage, owed.shards):
            progress.done = min(papers, progress.done + done)
            report(progress)
            yield

    left = run_rounds(stage.name, context.run, lease, owed, score, lambda: _owed(context, stage.tables)[1])
    if not left.papers:
        progress.done = papers
    return progress


def _round(stage: Stage, shards: list[str]) -> Iterator[int]:
    import ray

    work = ray.data.from_items([{"shard": name} for name in shards], override_num_blocks=len(shards))
    for batch in stage.flow(work).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield sum(batch["papers"].to_pylist())


def map_light(rows: Dataset, work: Callable[[pa.Table], Any], batch_size: int | None = None) -> Dataset:
    """Maps Arrow tables in tasks that reserve only a fraction of a CPU."""
    return rows.map_batches(work, batch_size=batch_size, num_cpus=LIGHT, batch_format="pyarrow", zero_copy_batch=True)


def _owed(context: Context, tables: tuple[Table, ...]) -> tuple[int, Owed]:
    """(papers in the source, papers that lack rows in one of ``tables``). Shards are read in parallel."""
    shards = context.source.shards()
    found = list(in_order(_owed_by_shard, context, ((tables, shard) for shard in shards), ahead=64))
    lacking = {shard: owed for shard, (_, owed) in zip(shards, found, strict=True) if owed}
    return sum(papers for papers, _ in found), Owed(sorted(lacking), sum(lacking.values()))


def count_papers(context: Context) -> int:
    """Number of papers in the source."""
    return _owed(context, ())[0]


def papers_owed(context: Context, tables: tuple[Table, ...]) -> int:
    """Number of papers in the source that lack rows in one of ``tables``."""
    return _owed(context, tables)[1].papers


def _owed_by_shard(context: Context, tables: tuple[Table, ...], shard: str) -> tuple[int, int]:
    keys = context.source.keys(shard)
    return len(keys), len(set().union(*(each.owed(context.run, shard, keys) for each in tables)))


def score_key(row: Any) -> dict[str, Any]:
    return {"doi": row["doi"], "digest": row["digest"]}


ROW_KEY = [*arrow_schema(ScoreKey), ("shard", pa.string())]


def tables_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields Arrow tables of at most ROWS_AT_ONCE rows and CHARACTERS_AT_ONCE; an empty one if there are no rows."""
    block: list[dict[str, Any]] = []
    characters, empty = 0, True
    for row in rows:
        own = _characters(row)
        if block and (len(block) == ROWS_AT_ONCE or characters + own > CHARACTERS_AT_ONCE):
            yield pa.Table.from_pylist(block, schema=schema)
            block, characters = [], 0
        block.append(row)
        characters, empty = characters + own, False
    if block or empty:
        yield pa.Table.from_pylist(block, schema=schema)


def _characters(value: Any) -> int:
    """Characters of all texts within a value."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return len(value) if isinstance(value, str) else 0
    return sum(map(_characters, value))


def write_scores(run: Run, scores: Table, rows: list[Any], make: Callable[[Any], list[Any]]) -> None:
    """Writes and logs the score rows that ``make`` returns for each of ``rows``."""
    by_shard: dict[str, list[Any]] = {}
    for row in rows:
        score_rows = make(row)
        by_shard.setdefault(row["shard"], []).extend(score_rows)
        for scored in score_rows:
            pair_fields = {name: scored[name] for name in ("qa", "pair_id") if name in scored}
            if scored.get("reason"):
                failure = {"reason": scored["reason"], "detail": scored["detail"]}
                log_event("not_measured", run, scores.name, row["doi"], WARNING, **failure, **pair_fields)
            else:
                log_event("measured", run, scores.name, row["doi"], DEBUG, **pair_fields)
    for shard, own in by_shard.items():
        scores.write(run, shard, own)
