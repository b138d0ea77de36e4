"""The judging stage: similarity and RACAR with an engine's ``score``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qaray.config import EvaluateConfig
from qaray.engines import Engine, WorkerInfo
from qaray.evaluate.controls import CONTROL_PAIRS, CONTROL_QUESTIONS, other_answers, other_questions
from qaray.evaluate.grades import racar_rows, similarity_row
from qaray.evaluate.measure import ROW_KEY, Context, Stage, map_light, score_key, tables_of, write_scores
from qaray.evaluate.rubrics import JudgePrompts, RacarTargets, SimilarityTargets
from qaray.evaluate.sources import keys_of
from qaray.evaluate.tables import QUESTIONS, RACAR, SIMILARITY, Table
from qaray.metrics import similarity
from qaray.models.planner import ModelPlan
from qaray.models.tokenizer import tokenizer_of
from qaray.run.directory import Run
from qaray.schema import Paired, ScoreRequest, arrow_schema, arrow_type, failure_of, rows_of

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class JudgeFactory:
    """Builds the JudgePrompts in the tasks that need them. Picklable."""

    config: EvaluateConfig
    plan: ModelPlan

    def __call__(self) -> JudgePrompts:
        template, tokenizer = replace(self.plan.template, opening=""), tokenizer_of(self.config)
        return JudgePrompts(template, tokenizer, self.plan.seq_len, self.config.metrics.judge_above)


REQUEST_SCHEMA = pa.schema(
    [
        *ROW_KEY,
        ("table", pa.string()),
        (SIMILARITY.name, arrow_type(SimilarityTargets)),  # targets of the suffixes, in rows for that table
        (RACAR.name, arrow_type(RacarTargets)),
        *arrow_schema(ScoreRequest),
    ]
)
REQUESTS_PER_BLOCK = {"cpu": 8, "cuda": 64}  # each up to half a minute of work


def judging(
    context: Context,
    config: EvaluateConfig,
    engine: Engine,
    worker: WorkerInfo,
    make_prompts: JudgeFactory,
    papers: int,
) -> Stage:
    """The stage that measures similarity and RACAR with the engine's ``score``.

    ``papers`` is the number of papers in the source, from which the share of control papers follows.
    """
    tables = tuple(each for each in (SIMILARITY, RACAR) if each.name in config.metrics.names)
    share = min(1.0, config.metrics.control_papers / max(1, papers))

    def flow(work: Dataset) -> Dataset:
        requests = map_light(work, _ReadRequests(context, tables, make_prompts, share), batch_size=1)
        size = REQUESTS_PER_BLOCK["cuda" if worker.gpus else "cpu"]
        blocks = requests.repartition(target_num_rows_per_block=size, strict=True)
        return map_light(engine.score(blocks), _WriteJudged(context.run, tables[-1].name))

    return Stage("judging", tables, flow)


@dataclass(frozen=True)
class _ReadRequests:
    context: Context
    tables: tuple[Table, ...]
    make_prompts: JudgeFactory
    control_share: float  # share of the papers that check the judge

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        prompts = self.make_prompts()
        for shard in work["shard"].to_pylist():
            yield from tables_of(self._rows(shard, prompts), REQUEST_SCHEMA)

    def _rows(self, shard: str, prompts: JudgePrompts) -> Iterator[dict[str, Any]]:
        context = self.context
        papers = context.papers(shard)
        keys = keys_of(papers)
        owed = {each.name: each.owed(context.run, shard, keys) for each in self.tables}
        vectors = {}
        if owed.get(SIMILARITY.name):
            vectors = {doi: rows[0] for doi, rows in QUESTIONS.read(context.run, shard, keys, ["vectors"]).items()}
        pairs = [paper["pairs"] for paper in papers]
        for place, paper in enumerate(papers):
            control = _is_chosen(paper["doi"], self.control_share)
            if paper["doi"] in owed.get(SIMILARITY.name, ()):
                own = np.asarray(vectors[paper["doi"]]["vectors"], dtype=np.float32)
                others = other_questions(pairs, place, min(len(own), CONTROL_QUESTIONS)) if control else []
                cosines = similarity.pair_cosines(own, similarity.question_pairs(len(own), paper["doi"]))
                yield self._row(paper, SIMILARITY, *prompts.similarity(paper, cosines, others))
            if paper["doi"] in owed.get(RACAR.name, ()):
                answers = other_answers(pairs, place, CONTROL_PAIRS) if control else []
                yield self._row(paper, RACAR, *prompts.racar(paper, answers))

    def _row(self, paper: Paired, scores: Table, request: ScoreRequest, targets: Any) -> dict[str, Any]:
        return {**score_key(paper), "shard": paper["shard"], "table": scores.name, scores.name: targets, **request}


def _is_chosen(doi: str, share: float) -> bool:
    digest = hashlib.sha256(doi.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True)
class _WriteJudged:
    run: Run
    counted: str  # the table whose rows count as progress

    def __call__(self, judged: pa.Table) -> pa.Table:
        rows = rows_of(judged)
        write_scores(self.run, SIMILARITY, rows, _similarity_rows)
        write_scores(self.run, RACAR, rows, _racar_rows)
        return pa.table({"papers": [sum(row["table"] == self.counted for row in rows)]})


def _similarity_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["table"] != SIMILARITY.name:
        return []
    return [similarity_row(score_key(row), row[SIMILARITY.name], row["logprobs"], failure_of(row))]


def _racar_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["table"] != RACAR.name:
        return []
    return list(racar_rows(score_key(row), row[RACAR.name], row["logprobs"], failure_of(row)))
