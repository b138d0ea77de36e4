"""Engines: what answers prompts and scores choices."""

from __future__ import annotations

from qaray.config import EngineConfig
from qaray.engines.base import Engine, StopCheck
from qaray.models import ModelPlan


def build_engine(config: EngineConfig, plan: ModelPlan, should_stop: StopCheck) -> Engine:
    """The engine that ``config.resolved_engine`` names. Its heavy imports come only here."""
    if config.resolved_engine == "echo":
        from qaray.engines.echo import EchoEngine

        return EchoEngine(config, should_stop)
    from qaray.engines.transformers import TransformersEngine

    return TransformersEngine(config, plan, should_stop)


__all__ = ["Engine", "StopCheck", "build_engine"]
