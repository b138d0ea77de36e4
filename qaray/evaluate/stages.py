"""Stages of an evaluation: papers with their pairs → rows of scores, written paper by paper.

    embedding   texts → coverage, vectors of questions     (a pool of embedding actors)
    judging     pairs → similarity, RACAR                  (a pool of engine actors)
    grounding   pairs and their evidence → grounding       (light tasks)

Stages run one after another, so that two pools never wait for each other's GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qaray.config import EvaluateConfig
from qaray.engines import WorkerInfo, build_engine
from qaray.evaluate.coverage import embedding
from qaray.evaluate.grounding import grounding
from qaray.evaluate.judging import JudgeFactory, judging
from qaray.evaluate.measure import Context, Stage
from qaray.models.planner import ModelPlan
from qaray.run.tries import Tries


def stages(
    context: Context,
    config: EvaluateConfig,
    plan: ModelPlan | None,
    worker: WorkerInfo,
    papers: int,
    notify: Callable[[str], None],
) -> Iterator[Stage]:
    """Yields the stages that the metrics need, in order.

    ``plan`` and ``worker`` are those of the judge; ``papers`` is the number of papers in the source.
    """
    if config.embeds:
        notify(f"embedding with {config.embedder}")
        yield embedding(context, config)
    if "grounding" in config.metrics.names:
        yield grounding(context)
    if plan is not None:
        engine = build_engine(config, plan, worker, context.should_stop, Tries.of(context.run))
        notify(f"judging with {config.model_name or 'no model'}: {engine.describe()}")
        yield judging(context, config, engine, worker, JudgeFactory(config, plan), papers)
