"""Rounds of prompts → completions → pairs, until each paper has its pairs or has used up its attempts.

The stored rows alone determine what is left to do: a round reads the shards of papers and answers, and generates and
writes the missing answers. One round is enough unless an earlier start was interrupted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from logging import DEBUG
from typing import Any, NamedTuple

import pyarrow as pa

from qaray.asking.prompts import PromptBuilder
from qaray.config import GenerateConfig
from qaray.corpus.doi_index import Ingested
from qaray.engines import Engine
from qaray.engines.base import parsed
from qaray.engines.http.spending import Price
from qaray.generate.answers import best_answers, by_doi, by_window, merge_answers, next_owed, read_answers
from qaray.models.planner import ModelPlan
from qaray.models.tokenizer import tokenizer_of
from qaray.run.cluster import LIGHT, in_order
from qaray.run.damage import set_aside
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.events import log_event
from qaray.run.lease import Lease
from qaray.run.rounds import Owed, run_rounds
from qaray.run.stopping import StopSignal
from qaray.schema import PARSED_SCHEMA, PROMPT_SCHEMA, Parsed, Prompt, RejectReason, table

MakeBuilder = Callable[[], PromptBuilder]
OWED_COLUMNS = ["doi", "window", "windows", "attempt", "num_qas", "reason", "pairs", "prompt_tokens", "output_tokens"]


def _unpriced(prompt_tokens: float, output_tokens: float) -> None:
    """The price of tokens that cost nothing known."""


@dataclass(frozen=True)
class BuilderFactory:
    """Builds the run's PromptBuilder in any process: each loads the tokenizer once, so that none is pickled."""

    config: GenerateConfig
    plan: ModelPlan

    def __call__(self) -> PromptBuilder:
        plan = self.plan
        return PromptBuilder.of(self.config, plan.template, tokenizer_of(self.config), plan.seq_len, plan.request)

    def count_tokens(self, texts: Any) -> list[int]:
        """Number of tokens of each text."""
        return tokenizer_of(self.config).count(texts) if texts else []


@dataclass
class Progress:
    """Counts of a running generation, for progress reports."""

    papers: int = 0  # papers of the run
    settled: int = 0  # papers with nothing left to generate
    settled_before: int = 0  # of these, papers settled by earlier starts
    rejected: int = 0  # rejected records and papers without pairs so far
    rejected_by: Counter[str] = field(default_factory=Counter)  # the same by reason, for this start only
    prompts: int = 0  # answers written by this start
    prompt_tokens: int = 0
    output_tokens: int = 0
    pairs: int = 0
    price: Price = _unpriced
    before: tuple[int, int] = (0, 0)  # prompt tokens and output tokens of earlier starts
    begun: float = field(default_factory=time.monotonic)  # start, seconds of the monotonic clock
    began: float = field(default_factory=time.time)  # start, seconds since the epoch
    first_answer: float | None = None  # first saved answer, seconds of the monotonic clock
    first_admission: float | None = None  # first admission of a prompt, seconds since the epoch

    @property
    def cost(self) -> float | None:
        """What the tokens of all starts have cost, None without prices."""
        return self.price(self.before[0] + self.prompt_tokens, self.before[1] + self.output_tokens)


def generate(
    run: Run,
    engine: Engine,
    make_builder: MakeBuilder,
    max_attempts: int,
    ingested: Ingested,
    lease: Lease,
    report: Callable[[Progress], None],
    notify: Callable[[str], None] = lambda line: None,
    price: Price = _unpriced,
) -> Progress:
    """Generates until every paper has its pairs or no attempts left, or a stop is requested; returns the counts.

    ``report`` is called after each saved block, ``notify`` with lines about damaged answers; ``price`` is that of
    prompt and output tokens. Raises RunError if a round makes no progress or the engine gives up, Superseded if another
    driver has taken over the run.
    """
    owed = owed_prompts(run, ingested.papers, max_attempts, notify)
    before = (owed.prompt_tokens, owed.output_tokens)
    progress = Progress(papers=ingested.papers, rejected=ingested.rejected, price=price, before=before)
    engine.resume(*before)
    progress.settled = progress.settled_before = ingested.papers - owed.papers
    if owed.papers:
        run.unfinish()
        if run.measured():
            run.evaluation.unfinish()  # its evaluation is outdated

    def ask(owed: Owed) -> Iterator[None]:
        for summary in _round(run, engine, make_builder, max_attempts, owed):
            _add(progress, summary)
            report(progress)
            yield
        engine.check()

    run_rounds("generate", run, lease, owed, ask, lambda: owed_prompts(run, ingested.papers, max_attempts))
    return progress


def _round(
    run: Run, engine: Engine, make_builder: MakeBuilder, max_attempts: int, owed: Owed
) -> Iterator[dict[str, Any]]:
    """One pass over the unfinished shards; yields a summary of each block once it is saved."""
    import ray

    files = run.generation_files()
    work = [{"shard": name, "answers": files.get(stem_of(name), [])} for name in owed.shards]
    todo = ray.data.from_items(work, override_num_blocks=len(work))
    prompts = todo.map_batches(
        _Prompter(run, make_builder, max_attempts, StopSignal(run.stop_flag)),
        batch_size=1,
        num_cpus=LIGHT,
        zero_copy_batch=True,
        batch_format="pyarrow",
    )
    expected = None if make_builder().overlength == "split" else owed.papers
    completions = engine.generate(prompts, expected)
    written = completions.map_batches(
        _Writer(run, max_attempts), batch_size=None, batch_format="pyarrow", num_cpus=LIGHT
    )
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _add(progress: Progress, summary: dict[str, Any]) -> None:
    if progress.first_answer is None and summary["prompts"]:
        progress.first_answer = time.monotonic()
    if summary["first_admission"]:
        known = progress.first_admission or summary["first_admission"]
        progress.first_admission = min(known, summary["first_admission"])
    progress.rejected_by.update(summary["reasons"])
    for name in ("settled", "rejected", "prompts", "prompt_tokens", "output_tokens", "pairs"):
        setattr(progress, name, getattr(progress, name) + summary[name])


@dataclass(frozen=True)
class _Prompter:
    """A paper shard → the pending prompts of its papers, longest first so that neighbours have similar lengths."""

    run: Run
    make_builder: MakeBuilder
    max_attempts: int
    should_stop: StopSignal

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        for item in work.to_pylist():
            if self.should_stop():
                continue
            shard = self.run.papers / f"{item['shard']}.parquet"
            answers = read_answers(shard.fs, item["answers"], OWED_COLUMNS)
            papers = shard.read_table()
            build = self.make_builder()
            rows: list[Prompt] = []
            for paper in papers.to_pylist():
                prompts = build.safely(paper, item["shard"])
                rows.extend(_owed(prompts, answers.get(paper["doi"], []), self.max_attempts))
            rows.sort(key=lambda row: (-row["prompt_tokens"], row["row"], row["window"]))
            for first in range(0, len(rows), 64):
                yield table(rows[first : first + 64], PROMPT_SCHEMA)
            if not rows:
                yield table([], PROMPT_SCHEMA)


def _owed(prompts: list[Prompt], answers: list[Parsed], max_attempts: int) -> Iterator[Prompt]:
    """The next attempt of each window that needs one."""
    windows = by_window(answers)
    for prompt in prompts:
        attempt = next_owed(windows.get(prompt["window"], []), max_attempts)
        if attempt is not None:
            yield Prompt(**{**prompt, "attempt": attempt})


SUMMARY_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("prompts", "settled", "rejected", "prompt_tokens", "output_tokens", "pairs")]
    + [("reasons", pa.list_(pa.string())), ("first_admission", pa.float64())]
)


@dataclass(frozen=True)
class _Writer:
    """Completions → pairs → one generation shard per paper shard of the block; returns one summary row per block."""

    run: Run
    max_attempts: int

    def __call__(self, completions: pa.Table) -> pa.Table:
        rows = [parsed(completion) for completion in completions.to_pylist()]
        by_shard: dict[str, list[Parsed]] = defaultdict(list)
        for row in rows:
            by_shard[row["shard"]].append(row)
        for shard, members in by_shard.items():
            keys = sorted((row["doi"], row["window"], row["attempt"]) for row in members)
            file = self.run.generation_file(shard, keys)
            self.run.view.commit(file, partial(file.write_table, table(members, PARSED_SCHEMA)))
        papers = by_doi(rows)
        firsts = {row["doi"] for row in rows if row["window"] == 0}
        rejected = {doi: reason for doi, reason in self._log_outcomes(papers) if doi in firsts}
        summary = {
            "prompts": len(rows),
            "settled": len(firsts),
            "rejected": len(rejected),
            "reasons": list(rejected.values()),
            "prompt_tokens": sum(row["prompt_tokens"] for row in rows if row["reason"] is None),
            "output_tokens": sum(row["output_tokens"] for row in rows),
            "pairs": sum(len(best["pairs"]) for own in papers.values() for best in best_answers(own)),
            "first_admission": min((row["began"] for row in rows if row["began"]), default=0.0),
        }
        return pa.Table.from_pylist([summary], schema=SUMMARY_SCHEMA)

    def _log_outcomes(self, papers: dict[str, list[Parsed]]) -> Iterator[tuple[str, str]]:
        """Logs the outcome of each prompt; yields (doi, reason) of papers that these answers leave without pairs."""
        for doi, answers in papers.items():
            for row in answers:
                place = {"window": row["window"], "attempt": row["attempt"]}
                if row["reason"] is None:
                    log_event("answered", self.run, "generate", doi, DEBUG, pairs=len(row["pairs"]), **place)
                    continue
                log_event("rejected", self.run, "generate", doi, reason=row["reason"], detail=row["detail"], **place)
                yield doi, row["reason"]
            spent = all(next_owed(own, self.max_attempts) is None for own in by_window(answers).values())
            if spent and not any(row["pairs"] or row["reason"] is not None for row in answers):
                reason = str(RejectReason.NO_PAIRS)
                log_event("rejected", self.run, "generate", doi, reason=reason, attempts=len(answers))
                yield doi, reason


def owed_prompts(run: Run, papers: int, max_attempts: int, notify: Callable[[str], None] = lambda line: None) -> Owed:
    """Scans the shards in parallel for papers with pending prompts. Damaged answers are set aside, and told.

    ``papers``: number of papers in the run.
    """
    files = run.generation_files()
    names = run.shard_names()
    begun = [name for name in names if stem_of(name) in files]
    fresh = [name for name in names if stem_of(name) not in files]
    work = ((name, files[stem_of(name)], max_attempts) for name in begun)
    counts = list(in_order(_owed_papers, run, work, ahead=64))
    owing = [name for name, count in zip(begun, counts, strict=True) if count.owed]
    for count in counts:
        for line in count.damaged:
            notify(line)
    return Owed(
        sorted([*owing, *fresh]),
        sum(count.owed for count in counts) + papers - sum(count.papers for count in counts),
        sum(count.prompt_tokens for count in counts),
        sum(count.output_tokens for count in counts),
    )


class _ShardCount(NamedTuple):
    """Counts of a shard of papers that was begun."""

    owed: int  # papers with a pending prompt
    papers: int
    prompt_tokens: int  # of its answers
    output_tokens: int
    damaged: list[str]  # lines about damaged files


def _owed_papers(run: Run, shard: str, answers: list[str], max_attempts: int) -> _ShardCount:
    """The counts of a shard. Nothing else may write to the shard meanwhile."""
    papers = (run.papers / f"{shard}.parquet").read_table(["doi"])["doi"].to_pylist()
    lines: list[str] = []
    answers = merge_answers(run, shard, answers)
    rows = read_answers(
        run.root.fs, answers, OWED_COLUMNS, lambda file, damage: lines.append(set_aside(run, file, damage))
    )
    asked = [row for own in rows.values() for row in own if row["reason"] is None]
    return _ShardCount(
        sum(_paper_is_owed(rows.get(doi, []), max_attempts) for doi in papers),
        len(papers),
        sum(row["prompt_tokens"] for row in asked),
        sum(row["output_tokens"] for row in asked),
        lines,
    )


def _paper_is_owed(answers: list[Parsed], max_attempts: int) -> bool:
    windows = by_window(answers)
    if not windows or len(windows) < answers[0]["windows"]:
        return True
    return any(next_owed(window, max_attempts) for window in windows.values())
