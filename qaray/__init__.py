"""qaray: turn scientific papers into an evaluated question-answer data set, on Ray. Use from Python: docs/python.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qaray.config import (
        ConfigError,
        DemoConfig,
        EvaluateConfig,
        FineTuneConfig,
        GenerateConfig,
        PipelineConfig,
    )
    from qaray.evaluate.pairs import read_pairs
    from qaray.pipeline import run_demo, run_evaluate, run_fine_tune, run_generate, run_pipeline
    from qaray.run.errors import RunError, RunRefused
    from qaray.run.stopping import Stopped

# Imported when they are used: the command line must answer at once.
_MODULES = {
    "qaray.config": (
        "ConfigError",
        "DemoConfig",
        "EvaluateConfig",
        "FineTuneConfig",
        "GenerateConfig",
        "PipelineConfig",
    ),
    "qaray.evaluate.pairs": ("read_pairs",),
    "qaray.pipeline": ("run_demo", "run_evaluate", "run_fine_tune", "run_generate", "run_pipeline"),
    "qaray.run.directory": ("RunError", "RunRefused"),
    "qaray.run.stopping": ("Stopped",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ConfigError",
    "DemoConfig",
    "EvaluateConfig",
    "FineTuneConfig",
    "GenerateConfig",
    "PipelineConfig",
    "RunError",
    "RunRefused",
    "Stopped",
    "read_pairs",
    "run_demo",
    "run_evaluate",
    "run_fine_tune",
    "run_generate",
    "run_pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
