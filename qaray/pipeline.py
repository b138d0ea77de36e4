"""The story on one page: papers → prompts → completions → pairs → scores → report.

Each stage reads what the one before has made durable, so that a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

from qaray.config import DemoConfig, EvaluateConfig, FineTuneConfig, GenerateConfig, PipelineConfig
from qaray.corpus.papers import Intake, ingest, input_files
from qaray.engines import Site, build_engine
from qaray.engines.attempts import attempts
from qaray.engines.site import await_node, begun_with, choose, look
from qaray.evaluate.duplicates import find_duplicates
from qaray.evaluate.manifest import evaluation_identity, evaluation_manifest
from qaray.evaluate.measure import Context, count_papers, measure
from qaray.evaluate.sources import GeneratedPapers, open_source
from qaray.evaluate.stages import stages
from qaray.evaluate.summary import summarise
from qaray.generate.manifest import Account, generation_identity, generation_manifest
from qaray.generate.outputs import write_outputs
from qaray.generate.rounds import BuilderFactory, generate
from qaray.models.catalogue import located
from qaray.models.planner import plan_model
from qaray.observe.meter import Meter
from qaray.observe.progress import Display
from qaray.report.index import write_report
from qaray.report.training import write_training_report
from qaray.run import cluster as runtime
from qaray.run.directory import Run
from qaray.run.durations import duration
from qaray.run.lease import Lease, lease
from qaray.run.stopping import Stopped, StopSignal, end_on_signal, stop_on_signal
from qaray.run.tries import Tries

# The bundled model has 135 million parameters and loses the thread in long contexts: windows of 2,048 tokens share out
# the pairs of a paper. A window is asked for one or two pairs: an answer that has not ended after 200 tokens is running
# in circles. As a judge, where it is hardly better than chance, it reads the first thousand tokens of a paper: most of
# the demo's time is reading, which a CPU without bfloat16 does at some 350 tokens a second.
DEMO_SEQ_LEN = 2048
DEMO_JUDGE_SEQ_LEN = 1024


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """The main job. Returns the manifest.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user, Stopped after SIGTERM or SIGINT.
    """
    begun = time.monotonic()
    config = located(config)
    run, display = Run.at(config.output_dir), Display(config.no_progress)
    input_files(config.file_path, run)  # a wrong path is told before anything is set up
    plan = plan_model(config)
    builder = BuilderFactory(config, plan)
    builder()  # a context too small for the request is told before any GPU is asked for

    with lease(run) as held, contextlib.ExitStack() as stack:
        Lease(run.evaluation).refuse_another()  # it reads what this may merge
        config, why = begun_with(config, run.engine)
        if config.engine != "auto":  # other settings are told before a cluster is asked for anything
            run.identify(generation_identity(config, plan))
        runtime.connect(config.address, config.local_cpus)
        with end_on_signal():
            site = look(config, display.say)
        config, why = choose(config, site, why)
        run.identify(generation_identity(config, plan))
        run.clean()
        stack.enter_context(stop_on_signal(run))  # after Ray, which brings handlers of its own
        should_stop = StopSignal(run.stop_flag)

        meter = stack.enter_context(Meter(run))
        intake = Intake(config.file_path, config.papers_per_shard, config.limit)
        papers = ingest(intake, run, builder.count_tokens, should_stop, told(display.ingested, meter.ingested))
        display.say(f"{papers.papers} papers, {papers.rejected} rejected records, {papers.tokens:,} tokens")

        engine = build_engine(config, plan, site, should_stop, Tries.of(run))
        display.say(f"engine: {engine.describe()}")
        progress = generate(
            run, engine, builder, attempts(config), papers, held, told(display.generated, meter.generated)
        )
        display.close()
        if run.stop_flag.exists():
            raise Stopped(
                f"stopped with {progress.settled} of {papers.papers} papers done: run the same command to go on"
            )

        held.check()
        run.clean()  # of writers that died in this start
        totals = write_outputs(run, config, builder, papers)
        account = Account(config, why, site, papers, progress, totals, time.monotonic() - begun)
        manifest = generation_manifest(run, account)
        run.manifest.write_json(manifest)
        Tries.of(run).forget()
        write_report(run, GeneratedPapers.of(run), config.report_papers, display.paged)
    out = f"{totals.pairs} pairs from {totals.with_pairs} of {totals.papers} papers"
    rejected = sum(totals.rejected.values())
    display.say(f"{out}, {rejected} rejected, in {duration(time.monotonic() - begun)}")
    return manifest


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Scores for the pairs of a run, or of a processed output made anywhere. Returns the summary.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user, Stopped after SIGTERM or SIGINT.
    """
    begun = time.monotonic()
    config = located(config)
    generated, display = Run.at(config.output_dir), Display(config.no_progress)
    run = generated.evaluation
    if config.processed_output:
        input_files(config.processed_output, run)
    else:
        generated.finished()
    plan = plan_model(config) if config.judges else None

    with lease(run) as held, contextlib.ExitStack() as stack:
        if not config.processed_output:
            Lease(generated).refuse_another()
        config, why = begun_with(config, run.engine)
        if config.engine != "auto":
            run.identify_parts(evaluation_identity(config, plan))
        runtime.connect(config.address, config.local_cpus)
        with end_on_signal():
            site = look(config, display.say) if plan else Site()
            if config.embeds and not site.device:
                await_node(config, display.say)
        config, why = choose(config, site, why) if plan else (config, why)
        run.identify_parts(evaluation_identity(config, plan))
        run.clean()
        stack.enter_context(stop_on_signal(run))
        should_stop = StopSignal(run.stop_flag)

        meter = stack.enter_context(Meter(generated))
        source, rejected = open_source(config, generated, should_stop, told(display.ingested, meter.ingested))
        context = Context(run, source, should_stop)
        papers = count_papers(context)
        display.say(f"{papers} papers with pairs, {rejected} rejected records; metrics: {config.metrics}")

        seconds = {}
        for stage in stages(context, config, plan, site, papers, display.say):
            started = time.monotonic()
            progress = measure(context, stage, held, told(display.measured, meter.measured))
            display.close()
            seconds[stage.name] = round(time.monotonic() - started, 2)
            if run.stop_flag.exists():
                done = f"{progress.done} of {papers} papers done"
                raise Stopped(f"stopped in {stage.name} with {done}: run the same command to go on")

        held.check()
        run.clean()
        duplicates = find_duplicates(context, config)
        summary = summarise(context, duplicates)
        manifest = evaluation_manifest(config, why, run, summary, rejected, seconds, time.monotonic() - begun)
        run.manifest.write_json(manifest)
        Tries.of(run).forget()
        write_report(generated, source, config.report_papers, display.paged)
    display.say(f"{summary['pairs']} pairs of {papers} papers measured in {duration(time.monotonic() - begun)}")
    return summary


def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """All of it: pairs, scores, report. Returns the evaluation's summary; raises what the two raise."""
    config.evaluation  # noqa: B018  its mistakes are told before anything runs
    run_generate(config.generation)
    return run_evaluate(config.evaluation)


def run_fine_tune(config: FineTuneConfig) -> dict[str, Any]:
    """Examples to a fine-tuned model. Returns the manifest.

    Raises ConfigError, FileNotFoundError or RunError with one line for the user.
    """
    from qaray.finetune.driver import run_fine_tune as fine_tune  # seven seconds of imports that the others do without

    display = Display(config.no_progress)
    run = Run.at(config.output_dir)
    with Meter(run) as meter:
        manifest = fine_tune(config, display.say, told(display.trained, meter.trained))
    display.close()
    write_training_report(run)
    return manifest


def demo_config(config: DemoConfig) -> GenerateConfig:
    """What the demo generates."""
    return GenerateConfig(
        file_path=str(resources.files("qaray") / "sample" / "papers.json"),
        base_model="bundled:smollm2-135m",
        output_dir=config.output_dir,
        cache_dir=config.cache_dir,
        seq_len=DEMO_SEQ_LEN,
        overlength="split",
        num_qas=config.num_qas,
        max_gen_len=config.max_gen_len,
        no_progress=config.no_progress,
    )


def run_demo(config: DemoConfig) -> str:
    """Runs the demo; returns the path of its report."""
    run_generate(demo_config(config))
    run_evaluate(
        EvaluateConfig(
            output_dir=config.output_dir,
            cache_dir=config.cache_dir,
            seq_len=DEMO_JUDGE_SEQ_LEN,
            no_progress=config.no_progress,
        )
    )
    return f"{config.output_dir.rstrip('/')}/report/index.html"


def told(*listeners: Callable[[Any], None]) -> Callable[[Any], None]:
    """One listener for several."""

    def tell(news: Any) -> None:
        for listener in listeners:
            listener(news)

    return tell


__all__ = ["Stopped", "run_demo", "run_evaluate", "run_fine_tune", "run_generate", "run_pipeline"]
