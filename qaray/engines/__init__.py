"""Engines generate answers to prompts and score choices."""

from __future__ import annotations

from qaray.config import EngineConfig, GenerateConfig
from qaray.engines.base import Engine
from qaray.engines.worker import WorkerInfo
from qaray.models.planner import ModelPlan
from qaray.run.stopping import StopSignal
from qaray.run.tries import Tries


def build_engine(
    config: EngineConfig, plan: ModelPlan, worker: WorkerInfo, should_stop: StopSignal, tries: Tries
) -> Engine:
    """The engine named by ``config.engine``, for nodes like ``worker``. Its dependencies are imported here only."""
    if config.engine == "echo":
        from qaray.engines.echo import EchoEngine

        return EchoEngine(should_stop, tries, config.echo_seconds if isinstance(config, GenerateConfig) else 0.0)
    if config.engine == "vllm":
        from qaray.engines.vllm import VLLMEngine

        return VLLMEngine(config, plan, worker, should_stop, tries)
    if config.engine == "http":
        from qaray.engines.http.engine import HttpEngine

        assert isinstance(config, GenerateConfig)
        return HttpEngine(config, plan, should_stop)
    from qaray.engines.local.engine import TransformersEngine

    return TransformersEngine(config, plan, worker, should_stop, tries)


__all__ = ["Engine", "WorkerInfo", "build_engine"]
