"""The stages of an evaluation: papers with their pairs → rows of scores, written paper by paper.

    embedding   texts → coverage, vectors of questions     (a pool of embedding actors)
    judging     pairs → similarity, RACAR                  (a pool of engine actors)
    grounding   pairs and their evidence → grounding       (light tasks)

Stages follow one another, so that two pools never wait for each other's GPUs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from logging import DEBUG, WARNING
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qaray import models
from qaray.config import EvaluateConfig
from qaray.embed import embed, papers_per_block
from qaray.engines import Engine, Site, StopCheck, build_engine
from qaray.events import tell
from qaray.judge import (
    CONTROL_PAIRS,
    NOT_FINITE,
    JudgePrompts,
    other_answers,
    other_questions,
    racar_rows,
    similarity_row,
)
from qaray.metrics.coverage import coverage, evidence
from qaray.metrics.grounding import leans_on, mentions, overlap, quantities, stands_in
from qaray.runs import Lease, Run, RunError
from qaray.runtime import LIGHT, in_order
from qaray.schema import SCORE_KEY, Paired
from qaray.scores import COVERAGE, GROUNDING, QUESTIONS, RACAR, SIMILARITY, Table
from qaray.sentences import split_sentences
from qaray.sources import Source, keys_of
from qaray.tries import Tries

if TYPE_CHECKING:
    from ray.data import Dataset

ROWS_AT_ONCE = 64  # papers of one table on its way


@dataclass
class Measured:
    """Counts of a running stage, for whoever shows them."""

    stage: str
    papers: int = 0  # of the source
    done: int = 0  # papers that are owed nothing by this stage
    done_before: int = 0  # of them, before this start
    begun: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Context:
    """What a stage works on. Picklable."""

    run: Run  # the evaluation's folder
    source: Source
    should_stop: StopCheck

    def papers(self, shard: str) -> list[Paired]:
        """The papers of a shard; none once the run is to stop."""
        return [] if self.should_stop() else self.source.read(shard)


@dataclass(frozen=True)
class Stage:
    """A way from shards, a row each with their name, to rows that say how many ``papers`` are in ``tables`` then."""

    name: str
    tables: tuple[Table, ...]
    flow: Callable[[Dataset], Dataset]


def measure(context: Context, stage: Stage, held: Lease, report: Callable[[Measured], None]) -> Measured:
    """Runs a stage until no paper is owed anything, or the run is told to stop. Raises RunError if it gets nowhere."""
    papers, owed = _owed(context, stage.tables)
    left = sum(owed.values())
    progress = Measured(stage.name, papers, papers - left, papers - left)
    if left:
        context.run.manifest.remove()  # the evaluation is not finished
    while left and not context.should_stop():
        for done in _round(stage, sorted(owed)):
            progress.done = min(papers, progress.done + done)
            held.check()
            report(progress)
        if context.should_stop():
            break
        before = left
        _, owed = _owed(context, stage.tables)
        left = sum(owed.values())
        progress.done = papers - left
        if left >= before:
            raise RunError(f"{stage.name} measured nothing, and {left} papers are left")
    return progress


def _round(stage: Stage, shards: list[str]) -> Iterator[int]:
    import ray

    work = ray.data.from_items([{"shard": name} for name in shards], override_num_blocks=len(shards))
    for batch in stage.flow(work).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield sum(batch["papers"].to_pylist())


def _lightly(rows: Dataset, work: Callable[[pa.Table], Any], batch_size: int | None = None) -> Dataset:
    return rows.map_batches(work, batch_size=batch_size, num_cpus=LIGHT, batch_format="pyarrow", zero_copy_batch=True)


def _owed(context: Context, tables: tuple[Table, ...]) -> tuple[int, dict[str, int]]:
    """(papers of the source, shard → papers that lack rows in one of ``tables``). Looked up in parallel."""
    shards = context.source.shards()
    found = list(in_order(_owed_by_shard, context, ((tables, shard) for shard in shards), ahead=64))
    owed = {shard: lacking for shard, (_, lacking) in zip(shards, found, strict=True) if lacking}
    return sum(papers for papers, _ in found), owed


def count_papers(context: Context) -> int:
    """Papers of the source."""
    return _owed(context, ())[0]


def papers_owed(context: Context, tables: tuple[Table, ...]) -> int:
    """Papers of the source that lack rows in one of ``tables``."""
    return sum(_owed(context, tables)[1].values())


def _owed_by_shard(context: Context, tables: tuple[Table, ...], shard: str) -> tuple[int, int]:
    keys = context.source.keys(shard)
    return len(keys), len(set().union(*(each.owed(context.run, shard, keys) for each in tables)))


def _key(row: Any) -> dict[str, Any]:
    return {"doi": row["doi"], "digest": row["digest"]}


ROW_KEY = [*SCORE_KEY, ("shard", pa.string())]


def stages(
    context: Context,
    config: EvaluateConfig,
    plan: models.ModelPlan | None,
    site: Site,
    papers: int,
    say: Callable[[str], None],
) -> Iterator[Stage]:
    """The stages that the metrics ask for, in order. ``plan``, ``site``: the judge's, ``papers``: of the source."""
    if config.embeds:
        say(f"embedding with {config.embedder}")
        yield embedding(context, config)
    if "grounding" in config.measures:
        yield grounding(context)
    if plan is not None:
        engine = build_engine(config, plan, site, context.should_stop, Tries.of(context.run))
        say(f"judging with {config.model or 'no model'}: {engine.describe()}")
        yield judging(context, config, engine, site, JudgeFactory(config, plan), papers)


# Embedding


def embedding(context: Context, config: EvaluateConfig) -> Stage:
    """Coverage, and the vectors of questions that similarity goes by."""
    asked = {"coverage": COVERAGE, "similarity": QUESTIONS}
    tables = tuple(table for metric, table in asked.items() if metric in config.measures)

    def flow(work: Dataset) -> Dataset:
        texts = _lightly(work, _ReadTexts(context, tables), batch_size=1)
        blocks = texts.repartition(target_num_rows_per_block=papers_per_block(config), strict=True)
        return _lightly(embed(blocks, config, context.should_stop, Tries.of(context.run)), _WriteCoverage(context.run))

    return Stage("embedding", tables, flow)


TEXT_SCHEMA = pa.schema(
    [
        *ROW_KEY,
        ("wanted", pa.list_(pa.string())),  # tables that lack the paper
        ("queries", pa.list_(pa.string())),
        ("documents", pa.list_(pa.string())),
        ("questions", pa.list_(pa.string())),
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
            rows = [
                row
                for paper in papers
                if (row := _texts(paper, [name for name, dois in owed.items() if paper["doi"] in dois]))["wanted"]
            ]
            yield from _tables(rows, TEXT_SCHEMA)


def _texts(paper: Paired, wanted: list[str]) -> dict[str, Any]:
    for_coverage, for_questions = COVERAGE.name in wanted, QUESTIONS.name in wanted
    return {
        **_key(paper),
        "shard": paper["shard"],
        "wanted": wanted,
        "queries": [f"{pair['Q']}\n{pair['A']}" for pair in paper["pairs"]] if for_coverage else [],
        "documents": split_sentences(paper["txt"]) if for_coverage else [],
        "questions": [pair["Q"] for pair in paper["pairs"]] if for_questions else [],
    }


def _tables(rows: list[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    for first in range(0, max(1, len(rows)), ROWS_AT_ONCE):
        yield pa.Table.from_pylist(rows[first : first + ROWS_AT_ONCE], schema=schema)


@dataclass(frozen=True)
class _WriteCoverage:
    run: Run

    def __call__(self, embedded: pa.Table) -> pa.Table:
        papers = embedded.to_pylist()
        _write(self.run, COVERAGE, papers, lambda row: [_coverage_row(row)] if COVERAGE.name in row["wanted"] else [])
        _write(self.run, QUESTIONS, papers, lambda row: [_question_row(row)] if QUESTIONS.name in row["wanted"] else [])
        return pa.table({"papers": [len(papers)]})


def _write(run: Run, scores: Table, rows: list[Any], make: Callable[[Any], list[Any]]) -> None:
    by_shard: dict[str, list[Any]] = {}
    for row in rows:
        made = make(row)
        by_shard.setdefault(row["shard"], []).extend(made)
        for scored in made:
            problem, place = scored.get("problem"), {"qa": scored["qa"]} if "qa" in scored else {}
            level = WARNING if problem else DEBUG
            tell(
                "not_measured" if problem else "measured", run, scores.name, row["doi"], level, problem=problem, **place
            )
    for shard, own in by_shard.items():
        scores.write(run, shard, own)


def _coverage_row(row: dict[str, Any]) -> dict[str, Any]:
    matrix, sentences = np.asarray(row["matrix"], dtype=np.float32), row["documents"]
    result = {
        **_key(row),
        "sentences": sentences,
        "matrix": row["matrix"],
        "pair_tokens_lost": row["query_tokens_lost"],
        "sentence_tokens_lost": row["document_tokens_lost"],
        "evidence": [],
    }
    if row["error"]:
        return {**result, "problem": row["error"]}
    if not row["queries"]:
        return {**result, "problem": "no_pairs"}
    if not np.isfinite(matrix).all():
        return {**result, "problem": NOT_FINITE}
    found = coverage(matrix)
    return {
        **result,
        "overall": found.overall,
        "individual": found.individual,
        "null": found.null,
        "lift": found.lift,
        "sentence_std": found.sentence_std,
        "evidence": [
            [{"sentence": j, "text": sentences[j].strip(), "score": float(matrix[i, j])} for j in best]
            for i, best in enumerate(evidence(matrix))
        ],
        "problem": None,
    }


def _question_row(row: dict[str, Any]) -> dict[str, Any]:
    return {**_key(row), "questions": row["questions"], "vectors": row["vectors"]}


# Judging


@dataclass(frozen=True)
class JudgeFactory:
    """Makes the prompts of the judge wherever they are needed."""

    config: EvaluateConfig
    plan: models.ModelPlan

    def __call__(self) -> JudgePrompts:
        template, tokenizer = replace(self.plan.template, opening=""), models.tokenizer_of(self.config)
        return JudgePrompts(template, tokenizer, self.plan.seq_len, self.config.judge_above)


REQUEST_SCHEMA = pa.schema(
    [
        *ROW_KEY,
        ("table", pa.string()),
        ("about", pa.string()),
        ("prefix", pa.string()),
        ("suffixes", pa.list_(pa.string())),
        ("choices", pa.list_(pa.string())),
    ]
)
REQUESTS_PER_BLOCK = {"cpu": 8, "cuda": 64}  # up to half a minute of work


def judging(
    context: Context, config: EvaluateConfig, engine: Engine, site: Site, make_prompts: JudgeFactory, papers: int
) -> Stage:
    """Similarity and RACAR by the engine's ``score``. ``papers``: of the source, of which some are controls."""
    tables = tuple(each for each in (SIMILARITY, RACAR) if each.name in config.measures)
    share = min(1.0, config.control_papers / max(1, papers))

    def flow(work: Dataset) -> Dataset:
        requests = _lightly(work, _ReadRequests(context, tables, make_prompts, share), batch_size=1)
        size = REQUESTS_PER_BLOCK["cuda" if site.gpus else "cpu"]
        blocks = requests.repartition(target_num_rows_per_block=size, strict=True)
        return _lightly(engine.score(blocks), _WriteJudged(context.run, tables[-1].name))

    return Stage("judging", tables, flow)


@dataclass(frozen=True)
class _ReadRequests:
    context: Context
    tables: tuple[Table, ...]
    make_prompts: JudgeFactory
    control_share: float  # of the papers that test the judge

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        context = self.context
        prompts = self.make_prompts()
        for shard in work["shard"].to_pylist():
            papers = context.papers(shard)
            keys = keys_of(papers)
            owed = {each.name: each.owed(context.run, shard, keys) for each in self.tables}
            vectors = {}
            if owed.get(SIMILARITY.name):
                vectors = {doi: rows[0] for doi, rows in QUESTIONS.read(context.run, shard, keys, ["vectors"]).items()}
            pairs = [paper["pairs"] for paper in papers]
            rows: list[dict[str, Any]] = []
            for place, paper in enumerate(papers):
                control = _is_chosen(paper["doi"], self.control_share)
                if paper["doi"] in owed.get(SIMILARITY.name, ()):
                    own = np.asarray(vectors[paper["doi"]]["vectors"], dtype=np.float32)
                    others = other_questions(pairs, place, len(paper["pairs"])) if control else []
                    cosines = own @ own.T if len(own) else np.zeros((0, 0))
                    rows.append(self._row(paper, SIMILARITY, prompts.similarity(paper, cosines, others).row))
                if paper["doi"] in owed.get(RACAR.name, ()):
                    answers = other_answers(pairs, place, CONTROL_PAIRS) if control else []
                    rows.append(self._row(paper, RACAR, prompts.racar(paper, answers).row))
                if len(rows) >= ROWS_AT_ONCE:
                    yield from _tables(rows, REQUEST_SCHEMA)
                    rows = []
            yield from _tables(rows, REQUEST_SCHEMA)

    def _row(self, paper: Paired, scores: Table, request: dict[str, Any]) -> dict[str, Any]:
        return {**_key(paper), "shard": paper["shard"], "table": scores.name, **request}


def _is_chosen(doi: str, share: float) -> bool:
    digest = hashlib.sha256(doi.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True)
class _WriteJudged:
    run: Run
    counted: str  # the table whose rows tell how far the stage is

    def __call__(self, judged: pa.Table) -> pa.Table:
        rows = judged.to_pylist()
        _write(self.run, SIMILARITY, rows, _similarity_rows)
        _write(self.run, RACAR, rows, _racar_rows)
        return pa.table({"papers": [sum(row["table"] == self.counted for row in rows)]})


def _similarity_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["table"] != SIMILARITY.name:
        return []
    return [similarity_row(_key(row), row["about"], row["logprobs"], row["error"])]


def _racar_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["table"] != RACAR.name:
        return []
    return list(racar_rows(_key(row), row["about"], row["logprobs"], row["error"]))


# Grounding


def grounding(context: Context) -> Stage:
    """Numbers, self-containedness, and words shared with the evidence where coverage was measured."""
    return Stage("grounding", (GROUNDING,), lambda work: _lightly(work, _Ground(context), batch_size=1))


@dataclass(frozen=True)
class _Ground:
    context: Context

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        context = self.context
        for shard in work["shard"].to_pylist():
            papers = context.papers(shard)
            keys = keys_of(papers)
            owed = GROUNDING.owed(context.run, shard, keys)
            found = COVERAGE.read(context.run, shard, keys, ["evidence"])
            rows = [
                row
                for paper in papers
                if paper["doi"] in owed
                for row in _grounding_rows(paper, found[paper["doi"]][0]["evidence"] if paper["doi"] in found else None)
            ]
            GROUNDING.write(context.run, shard, rows)
            yield pa.table({"papers": [len({row["doi"] for row in rows})]})


def _grounding_rows(paper: Paired, best: list[Any] | None) -> Iterator[dict[str, Any]]:
    known = quantities(paper["txt"])
    for qa, pair in enumerate(paper["pairs"]):
        numbers = mentions(pair["A"])
        missing = [number.text for number in numbers if not stands_in(number, known)]
        leaning = leans_on(pair["Q"])
        shared = None
        if best:
            shared = overlap(pair["A"], " ".join(one["text"] for one in best[qa]))
        yield {
            **_key(paper),
            "qa": qa,
            "numbers": len(numbers),
            "numbers_found": len(numbers) - len(missing),
            "missing": missing,
            "self_contained": leaning is None,
            "leans_on": leaning,
            "answer_words": len(pair["A"].split()),
            "overlap": shared,
            "problem": None if pair["A"].strip() else "empty_answer",
        }
