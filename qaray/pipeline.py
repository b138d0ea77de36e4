"""The story on one page: papers → prompts → completions → pairs → report.

Each stage reads what the one before has made durable, so that a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qaray import models, runtime
from qaray.config import GenerateConfig
from qaray.engines import build_engine
from qaray.engines.base import attempts
from qaray.generate import Progress, generate
from qaray.outputs import Totals, git_commit, now, versions, write_outputs
from qaray.papers import Ingested, ingest, input_files
from qaray.progress import Display, duration
from qaray.prompts import PromptBuilder, WordTokenizer
from qaray.report import write_report
from qaray.runs import Run, StopSignal, lease


class Stopped(Exception):
    """The run was told to stop. What is done is durable; the same command goes on."""


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """The main job. Returns the manifest.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user, Stopped after SIGTERM or SIGINT.
    """
    begun = time.monotonic()
    config = models.located(config)
    run, display = Run.at(config.output_dir), Display(config.no_progress)
    input_files(config, run)  # a wrong path is told before anything is set up
    plan = models.plan(config)
    builder = BuilderFactory(config, plan)
    builder()  # a context too small for the request is told before any GPU is asked for

    with lease(run) as held, contextlib.ExitStack() as signals:
        run.identify(identity(config, plan))
        run.clean()
        runtime.connect(config.address, config.local_cpus)
        signals.enter_context(stop_on_signal(run))  # after Ray, which brings handlers of its own
        should_stop = StopSignal(run.stop_flag)

        papers = ingest(config, run, builder.count_tokens, should_stop, display.ingested)
        display.say(f"{papers.papers} papers, {papers.rejected} rejected records, {papers.tokens:,} tokens")

        engine = build_engine(config, plan, should_stop)
        display.say(f"engine: {engine.describe()}")
        progress = generate(run, engine, builder, attempts(config), papers, held, display.generated)
        display.close()
        if run.stop_flag.exists():
            raise Stopped(
                f"stopped with {progress.settled} of {papers.papers} papers done: run the same command to go on"
            )

        held.check()
        totals = write_outputs(run, config, builder, papers)
        manifest = manifest_of(config, plan, run, papers, progress, totals, time.monotonic() - begun)
        run.manifest.write_json(manifest)
        write_report(run)
    out = f"{totals.pairs} pairs from {totals.with_pairs} of {totals.papers} papers"
    rejected = sum(totals.rejected.values())
    display.say(f"{out}, {rejected} rejected, in {duration(time.monotonic() - begun)}")
    return manifest


@dataclass(frozen=True)
class BuilderFactory:
    """Makes the run's PromptBuilder wherever it is needed: a tokenizer is loaded once a process, not sent about."""

    config: GenerateConfig
    plan: models.ModelPlan

    def __call__(self) -> PromptBuilder:
        return PromptBuilder.of(self.config, self.plan.template, self._tokenizer(), self.plan.seq_len)

    def count_tokens(self, texts: Any) -> list[int]:
        return self._tokenizer().count(texts) if texts else []

    def _tokenizer(self) -> Any:
        config = self.config
        if config.base_model is None:
            return WordTokenizer()
        return models.load_tokenizer(config.base_model, config.cache_dir, config.trust_remote_code)


def identity(config: GenerateConfig, plan: models.ModelPlan) -> dict[str, Any]:
    """What may not change between two starts of a run."""
    from qaray.prompts import INSTRUCTION, REQUEST

    return {
        "engine": config.resolved_engine,
        "base_model": config.base_model,
        "template": plan.template.name,
        "template_sha256": plan.template.sha256,
        "request_sha256": _sha256(INSTRUCTION + "\0" + REQUEST),
        "context_size": plan.context_size,
        "seq_len": plan.seq_len,
        "rope_factor": plan.rope_factor,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_gen_len": config.max_gen_len,
        "min_gen_len": config.min_gen_len,
        "num_qas": config.num_qas,
        "overlength": config.overlength,
        "seed": config.seed,
        "dtype": config.dtype,
    }


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def manifest_of(
    config: GenerateConfig,
    plan: models.ModelPlan,
    run: Run,
    papers: Ingested,
    progress: Progress,
    totals: Totals,
    seconds: float,
) -> dict[str, Any]:
    """The run's account. A start that generated nothing keeps the figures of the one that did."""
    generation = time.monotonic() - progress.begun
    engine_up = (progress.first_answer or progress.begun) - progress.begun
    work = {
        "finished": now(),
        "seconds": round(seconds, 2),
        "generate_seconds": round(generation, 2),
        "seconds_to_first_answer": round(engine_up, 2),
        "prompts": progress.prompts,
        "output_tokens_per_second": round(progress.output_tokens / generation, 2) if generation else 0.0,
        "prompt_tokens_per_second": round(progress.prompt_tokens / generation, 2) if generation else 0.0,
        "device_seconds": round(generation * config.pool[1], 2),
    }
    previous = run.manifest.read_json()
    if progress.prompts == 0 and previous:
        work = previous["last_start"]
    why = "asked for" if config.engine != "auto" else "auto: the transformers engine runs wherever a model loads"
    return {
        "run": run.identity.read_json(),
        "versions": versions(),
        "git_commit": git_commit(),
        "engine": {"name": config.resolved_engine, "why": why, "actors": config.actors},
        "inputs": papers.sources,
        "counts": {
            "records": papers.papers + papers.rejected,
            "papers": totals.papers,
            "papers_with_pairs": totals.with_pairs,
            "rejected": sum(totals.rejected.values()),
            "pairs": totals.pairs,
            "prompts": totals.prompts,
            "by_status": dict(totals.status),
            "by_finish_reason": dict(totals.finish),
            "by_reject_reason": dict(totals.rejected),
            "truncated_papers": totals.truncated_papers,
        },
        "tokens": {
            "papers": papers.tokens,
            "prompts": totals.prompt_tokens,
            "outputs": totals.output_tokens,
            "truncated": totals.truncated_tokens,
        },
        "answer_seconds": round(totals.answer_seconds, 2),
        "last_start": work,
    }


@contextlib.contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop: what is in hand is finished and written. A second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: Any) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, previous[each])
        threading.Thread(target=ask, name="qaray-stop").start()  # a handler must not wait for a store

    def ask() -> None:
        run.stop_flag.write_json({"asked": now()})

    run.stop_flag.remove()
    previous = {each: signal.signal(each, handle) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


__all__ = ["Stopped", "run_generate"]
