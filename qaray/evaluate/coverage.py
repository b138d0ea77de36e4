"""The embedding stage: coverage and question vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qaray.config import EvaluateConfig
from qaray.corpus.sentences import split_sentences
from qaray.embedding.embed import embed, papers_per_block
from qaray.evaluate.grades import NOT_FINITE
from qaray.evaluate.measure import ROW_KEY, Context, Stage, map_light, score_key, tables_of, write_scores
from qaray.evaluate.sources import keys_of
from qaray.evaluate.tables import COVERAGE, QUESTIONS, Table
from qaray.metrics.coverage import coverage, evidence
from qaray.run.directory import Run
from qaray.run.tries import Tries
from qaray.schema import Failure, Paired, Questions, ScoreReason, columns, failed, failure_of, rows_of

if TYPE_CHECKING:
    from ray.data import Dataset


def embedding(context: Context, config: EvaluateConfig) -> Stage:
    """The stage that measures coverage and embeds questions for similarity."""
    by_metric = {"coverage": COVERAGE, "similarity": QUESTIONS}
    tables = tuple(table for metric, table in by_metric.items() if metric in config.metrics.names)

    def flow(work: Dataset) -> Dataset:
        texts = map_light(work, _ReadTexts(context, tables), batch_size=1)
        blocks = texts.repartition(target_num_rows_per_block=papers_per_block(config), strict=True)
        return map_light(embed(blocks, config, context.should_stop, Tries.of(context.run)), _WriteCoverage(context.run))

    return Stage("embedding", tables, flow)


# Maximum of pairs × sentences of a paper whose coverage is measured: 120 MB. A block of 64 such papers is within what a
# list of Arrow holds.
MAX_COSINES = 30_000_000
MAX_EVIDENCE = 10_000  # characters of a sentence that each pair's evidence repeats
TEXT_SCHEMA = pa.schema(
    [
        *ROW_KEY,
        ("wanted", pa.list_(pa.string())),  # names of the tables without rows for the paper
        ("queries", pa.list_(pa.string())),
        ("documents", pa.list_(pa.string())),
        ("questions", pa.list_(pa.string())),
        ("pair_ids", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class _ReadTexts:
    context: Context
    tables: tuple[Table, ...]

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        context = self.context
        for shard in work["shard"].to_pylist():
            papers = context.papers(shard)
            keys = keys_of(papers)
            owed = {each.name: each.owed(context.run, shard, keys) for each in self.tables}
            wanted = ((paper, [name for name, dois in owed.items() if paper["doi"] in dois]) for paper in papers)
            yield from tables_of((_texts(paper, names) for paper, names in wanted if names), TEXT_SCHEMA)


def _texts(paper: Paired, wanted: list[str]) -> dict[str, Any]:
    for_coverage, for_questions = COVERAGE.name in wanted, QUESTIONS.name in wanted
    documents = split_sentences(paper["txt"]) if for_coverage else []
    fits = len(paper["pairs"]) * len(documents) <= MAX_COSINES
    return {
        **score_key(paper),
        "shard": paper["shard"],
        "wanted": wanted,
        "queries": [f"{pair['Q']}\n{pair['A']}" for pair in paper["pairs"]] if for_coverage and fits else [],
        "documents": documents,
        "questions": [pair["Q"] for pair in paper["pairs"]] if for_questions else [],
        "pair_ids": [pair["pair_id"] for pair in paper["pairs"]],
    }


@dataclass(frozen=True)
class _WriteCoverage:
    run: Run

    def __call__(self, embedded: pa.Table) -> pa.Table:
        papers = rows_of(embedded)
        write_scores(self.run, COVERAGE, papers, _coverage_rows)
        write_scores(self.run, QUESTIONS, papers, _question_rows)
        return pa.table({"papers": [len(papers)]})


def _coverage_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [_coverage_row(row)] if COVERAGE.name in row["wanted"] else []


def _question_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    if QUESTIONS.name not in row["wanted"]:
        return []
    return [{name: row[name] for name in columns(Questions)}]


def _coverage_row(row: dict[str, Any]) -> dict[str, Any]:
    matrix, sentences = np.asarray(row["matrix"], dtype=np.float32), row["documents"]
    result = {
        **score_key(row),
        "pair_ids": row["pair_ids"],
        "sentences": sentences,
        "matrix": row["matrix"],
        "pair_tokens_lost": row["query_tokens_lost"],
        "sentence_tokens_lost": row["document_tokens_lost"],
        "evidence": [],
    }
    failure = failure_of(row)
    if failure is None and not row["pair_ids"]:
        failure = Failure(ScoreReason.NO_PAIRS)
    if failure is None and not sentences:
        failure = Failure(ScoreReason.EMPTY_PAPER)
    if failure is None and not row["queries"]:
        size = f"{len(row['pair_ids']):,} pairs × {len(sentences):,} sentences"
        failure = Failure.of(ScoreReason.OVER_LENGTH, f"{size} exceed the {MAX_COSINES:,} cosines kept per paper")
    if failure is None and not np.isfinite(matrix).all():
        failure = NOT_FINITE
    if failure is not None:
        return {**result, **failed(failure)}
    found = coverage(matrix)
    return {
        **result,
        "overall": found.overall,
        "individual": found.individual,
        "null": found.null,
        "lift": found.lift,
        "sentence_std": found.sentence_std,
        "evidence": [
            [{"sentence": j, "text": sentences[j].strip()[:MAX_EVIDENCE], "score": float(matrix[i, j])} for j in best]
            for i, best in enumerate(evidence(matrix))
        ],
        **failed(None),
    }
