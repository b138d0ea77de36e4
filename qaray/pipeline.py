"""The story on one page: papers → prompts → completions → pairs → scores → report.

Each stage reads what the one before has made durable, so that an interrupted run resumes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Generic, TypeVar

from qaray.config import (
    DemoConfig,
    EvaluateConfig,
    FineTuneConfig,
    GenerateConfig,
    PipelineConfig,
)
from qaray.corpus.doi_index import Ingested
from qaray.corpus.inputs import input_files
from qaray.corpus.papers import Intake, ingest
from qaray.engines import WorkerInfo, build_engine
from qaray.engines.attempts import attempts
from qaray.engines.http.discovery import reached
from qaray.engines.worker import inspect_worker, resolve_engine, resume_engine, wait_for_node
from qaray.evaluate.duplicates import find_duplicates
from qaray.evaluate.manifest import evaluation_identity, evaluation_manifest
from qaray.evaluate.measure import Context, count_papers, measure
from qaray.evaluate.sources import GeneratedPapers, open_source
from qaray.evaluate.stages import stages
from qaray.evaluate.summary import summarise
from qaray.finetune import require_extra
from qaray.generate.manifest import Account, generation_identity, generation_manifest
from qaray.generate.outputs import write_outputs
from qaray.generate.redo import forget
from qaray.generate.rounds import BuilderFactory, generate
from qaray.models.catalogue import require_bundled, with_absolute_paths
from qaray.models.planner import plan_model
from qaray.observe.meter import Meter
from qaray.observe.progress import Display
from qaray.report.index import write_report
from qaray.report.training import write_training_report
from qaray.run import cluster as runtime
from qaray.run.directory import Run
from qaray.run.durations import duration
from qaray.run.inventory import Inventory
from qaray.run.lease import Lease, lease
from qaray.run.stopping import Stopped, StopSignal, end_on_signal, stop_on_signal
from qaray.run.tries import Tries

# The bundled model has 135 million parameters and loses the thread in long contexts: windows of 2,048 tokens share out
# the pairs of a paper. A window is asked for one or two pairs: an answer that has not ended after 200 tokens is running
# in circles. As a judge, where it is hardly better than chance, it reads the first thousand tokens of a paper: most of
# the demo's time is reading, which a CPU without bfloat16 does at some 350 tokens a second.
DEMO_SEQ_LEN = 2048
DEMO_JUDGE_SEQ_LEN = 1024

AnyConfig = TypeVar("AnyConfig", GenerateConfig, EvaluateConfig, FineTuneConfig)


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """The main job. Returns the manifest.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user, Stopped after SIGTERM or SIGINT.
    """
    config = with_absolute_paths(config)
    run = Run.at(config.output_dir)
    input_files(config.papers.file_path, run)  # a wrong path is reported before anything is set up
    if config.engine == "http":
        config = reached(config)
    plan = plan_model(config)
    builder = BuilderFactory(config, plan)
    builder()  # so is a context too small for the request

    def identify(config: GenerateConfig) -> None:
        run.identify(generation_identity(config, plan))

    quiet, others = config.output.no_progress, [run.evaluation]
    with open_session(config, run, identify, quiet=quiet, others=others, needs_engine=True) as session:
        config, run, display, meter = session.config, session.run, session.display, session.meter
        papers = ingest_papers(config, session, builder)
        display.notify(f"{papers.papers} papers, {papers.rejected} rejected records, {papers.tokens:,} tokens")
        for note in papers.notes():
            display.notify(note)

        engine = build_engine(config, plan, session.worker, session.should_stop, Tries.of(run))
        display.notify(f"engine: {engine.describe()}")
        report = fan_out(display.generated, meter.generated)
        arguments = (attempts(config), papers, session.lease, report, display.notify, config.endpoint.cost)
        progress = generate(run, engine, builder, *arguments)
        session.end_stage(f"{progress.settled} of {papers.papers} papers are done")
        session.end_stages()

        totals = write_outputs(run, config, builder, papers, session.lease.check)
        account = Account(config, session.engine_reason, session.worker, papers, progress, totals, session.seconds)
        manifest = generation_manifest(run, account)
        run.write_manifest(manifest)
        Tries.of(run).clear()
        write_report(run, GeneratedPapers.of(run), config.output.report_papers, display.paged)
    out = f"{totals.pairs} pairs from {totals.with_pairs} of {totals.papers} papers"
    display.notify(f"{out}, {sum(totals.rejected.values())} rejected, in {duration(session.seconds)}")
    return manifest


def ingest_papers(config: GenerateConfig, session: Session[GenerateConfig], builder: BuilderFactory) -> Ingested:
    """Ingests the papers, and deals with those whose text has changed as ``--changed`` says."""
    settings, run = config.papers, session.run
    redo = settings.changed == "redo"
    intake = Intake(settings.file_path, settings.papers_per_shard, settings.limit, redo=redo)
    progress = fan_out(session.display.ingested, session.meter.ingested)
    arguments = (intake, run, builder.count_tokens, session.should_stop, progress, session.lease.check)
    papers = ingest(*arguments)
    if redo and papers.to_redo and not session.should_stop():
        session.display.notify(f"{len(papers.to_redo)} papers have another text: they are asked again")
        forget(run, papers.to_redo)
        papers = ingest(*arguments)
    elif papers.changed and settings.changed == "report":
        named = ", ".join(papers.changed_dois[:5]) + (", …" if papers.changed > 5 else "")
        session.display.notify(
            f"{papers.changed} papers have another text than when they were asked ({named}): their pairs are kept; "
            "--changed redo asks them again"
        )
    return papers


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Scores for the pairs of a run, or of a processed output made anywhere. Returns the summary.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user, Stopped after SIGTERM or SIGINT.
    """
    config = with_absolute_paths(config)
    generated = Run.at(config.output_dir)
    run = generated.evaluation
    if config.pairs.processed_output:
        input_files(config.pairs.processed_output, run)
    else:
        generated.finished()
        for problem in Inventory.of(generated).problems(generated):
            raise problem
    plan = plan_model(config) if config.judges else None

    def identify(config: EvaluateConfig) -> None:
        run.identify_parts(evaluation_identity(config, plan))

    with open_session(
        config,
        run,
        identify,
        quiet=config.output.no_progress,
        others=[] if config.pairs.processed_output else [generated],
        needs_engine=config.judges,
        needs_node=config.embeds,
        shown_as=generated,
    ) as session:
        config, run, display, meter = session.config, session.run, session.display, session.meter
        progress_of_ingest = fan_out(display.ingested, meter.ingested)
        source, ingested = open_source(config, generated, run, session.should_stop, progress_of_ingest)
        context = Context(run, source, session.should_stop)
        papers = count_papers(context)
        metrics = config.metrics.metrics
        display.notify(f"{papers} papers with pairs, {ingested.rejected} rejected records; metrics: {metrics}")
        for note in ingested.notes():
            display.notify(note)

        seconds = {}
        for stage in stages(context, config, plan, session.worker, papers, display.notify):
            started = time.monotonic()
            progress = measure(context, stage, session.lease, fan_out(display.measured, meter.measured))
            seconds[stage.name] = round(time.monotonic() - started, 2)
            session.end_stage(f"{stage.name}: {progress.done} of {papers} papers are done")
        session.end_stages()

        duplicates = find_duplicates(context, config)
        session.lease.check()
        summary = summarise(context, duplicates)
        manifest = evaluation_manifest(config, session.engine_reason, run, summary, ingested, seconds, session.seconds)
        run.write_manifest(manifest)
        Tries.of(run).clear()
        write_report(generated, source, config.output.report_papers, display.paged)
    display.notify(f"{summary['pairs']} pairs of {papers} papers evaluated in {duration(session.seconds)}")
    return summary


def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """All of it: pairs, scores, report. Returns the evaluation's summary; raises what the two raise."""
    run_generate(config.generation)
    return run_evaluate(config.evaluation)


def run_fine_tune(config: FineTuneConfig) -> dict[str, Any]:
    """Examples to a fine-tuned model. Returns the manifest.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user.
    """
    require_extra()
    from qaray.finetune import driver  # seven seconds of imports, which other commands do not need

    config = with_absolute_paths(config)
    run = Run.at(config.output_dir)
    job = driver.decide(config)
    if manifest := driver.finished(job, run):
        Display(config.no_progress).notify("this run is finished")
        write_training_report(run)
        return manifest

    def identify(_: FineTuneConfig) -> None:
        driver.identify(job, run, Display(config.no_progress).notify)

    config = config.replace(local_cpus=config.cluster.local_cpus or driver.local_cpus(config))
    with open_session(config, run, identify, quiet=config.no_progress) as session:
        run, display, meter = session.run, session.display, session.meter
        examples = driver.prepare(job, run, display.notify)
        log = driver.train(job, run, examples, display.notify, fan_out(display.trained, meter.trained))
        display.close()
        session.lease.check()
        driver.write_model(job, run, display.notify)
        manifest = driver.training_manifest(job, run, examples, log, session.seconds)
        run.write_manifest(manifest)
        write_training_report(run)
    return manifest


def demo_config(config: DemoConfig) -> GenerateConfig:
    """What the demo generates."""
    settings = {
        "file_path": str(resources.files("qaray") / "sample" / "papers.json"),
        "engine": config.engine,
        "base_model": None if config.engine == "echo" else "bundled:smollm2-135m",
        "output_dir": config.output_dir,
        "cache_dir": config.cache_dir,
        "seq_len": DEMO_SEQ_LEN,
        "overlength": "split",
        "num_qas": config.num_qas,
        "max_gen_len": config.max_gen_len,
        "no_progress": config.no_progress,
    }
    return GenerateConfig(**settings)


def run_demo(config: DemoConfig) -> str:
    """Runs the demo; returns the path of its report. Raises ConfigError if the bundled models are not installed."""
    if config.engine != "echo":
        require_bundled()
    run_generate(demo_config(config))
    settings = {
        "engine": config.engine,
        "output_dir": config.output_dir,
        "cache_dir": config.cache_dir,
        "seq_len": DEMO_JUDGE_SEQ_LEN,
        "no_progress": config.no_progress,
    }
    run_evaluate(EvaluateConfig(**settings))
    return f"{config.output_dir.rstrip('/')}/report/index.html"


@dataclass
class Session(Generic[AnyConfig]):
    """One start of a command on a run directory, in the name of its epoch: what every command has while it works."""

    config: AnyConfig  # with the engine resolved
    run: Run
    lease: Lease
    display: Display
    meter: Meter
    should_stop: StopSignal
    worker: WorkerInfo
    engine_reason: str  # why the engine is this one
    begun: float  # seconds of the monotonic clock

    @property
    def seconds(self) -> float:
        """Of this start, until now."""
        return time.monotonic() - self.begun

    def end_stage(self, done: str) -> None:
        """After each stage. Raises Stopped if a stop was requested; ``done`` says how far the stage is."""
        self.display.close()
        if self.run.stop_flag.exists():
            raise Stopped(f"stopped: {done}; rerun the command to resume")

    def end_stages(self) -> None:
        """After the last stage. Raises RunError if another driver has taken the run."""
        self.lease.check()
        self.run.clean()  # after writers that died


@contextlib.contextmanager
def open_session(
    config: AnyConfig,
    run: Run,
    identify: Callable[[AnyConfig], None],
    *,
    quiet: bool,
    others: Sequence[Run] = (),
    needs_engine: bool = False,
    needs_node: bool = False,
    shown_as: Run | None = None,
) -> Iterator[Session[AnyConfig]]:
    """Takes the lease, checks the identity, connects to Ray, resolves the engine, handles signals, starts the metrics.

    ``identify`` writes the run's identity or refuses it: before a cluster is asked for anything, if the engine is known
    by then. ``others`` must have no driver. ``needs_node``: waits for a node that can hold a model. The metrics carry
    the name of ``shown_as``. Raises RunRefused, ConfigError, RunError or Stopped.
    """
    begun, display = time.monotonic(), Display(quiet)
    worker, reason = WorkerInfo(), ""
    run.refuse_foreign()
    if shown_as is not None:
        shown_as.refuse_foreign_report()
    with lease(run, display.notify) as held, contextlib.ExitStack() as stack:
        run = held.run
        run.restore()
        for other in others:
            Lease(other).refuse_another(display.notify)
        if isinstance(config, FineTuneConfig):
            identify(config)
            runtime.connect(config.cluster)
            run.clean()
        else:
            config, reason = resume_engine(config, run.engine)
            if config.engine != "auto":
                identify(config)
            runtime.connect(config.cluster)
            with end_on_signal():
                if needs_engine:
                    worker = inspect_worker(config, display.notify)
                if needs_node and not worker.device:
                    wait_for_node(config, display.notify)
            if needs_engine:
                config, reason = resolve_engine(config, worker, reason)
            identify(config)
            run.clean()
            stack.enter_context(stop_on_signal(run))  # after Ray, which installs handlers of its own
        meter = stack.enter_context(Meter(shown_as or run))
        yield Session(config, run, held, display, meter, StopSignal(run.stop_flag), worker, reason, begun)


def fan_out(*listeners: Callable[[Any], None]) -> Callable[[Any], None]:
    """One listener for several."""

    def notify(progress: Any) -> None:
        for listener in listeners:
            listener(progress)

    return notify


__all__ = ["Stopped", "run_demo", "run_evaluate", "run_fine_tune", "run_generate", "run_pipeline"]
