"""Reads DeepSpeed's JSON configuration and checks it against the flags of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qaray.config import ConfigError
from qaray.run.storage import Location

# Keys of the JSON that duplicate a flag; "auto" takes the flag's value.
FLAG_OF_KEY = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}
SCHEDULES = {"WarmupDecayLR": "linear", "WarmupLR": "constant_with_warmup", "WarmupCosineLR": "cosine"}


@dataclass(frozen=True)
class DeepSpeedPlan:
    """The DeepSpeed configuration to train with."""

    config: dict[str, Any]
    notes: tuple[str, ...] = ()  # one line for the user per change

    @property
    def stage(self) -> int:
        """ZeRO stage, 1 to 3."""
        return int(self.config["zero_optimization"]["stage"])


def read_config(path: str, arguments: Any, given: set[str], workers: int) -> DeepSpeedPlan:
    """The configuration at ``path`` for these TrainingArguments. ``given``: names of the flags that the user set.

    A scheduler that contradicts ``--lr_scheduler_type`` is dropped with a note if the user set that flag. Raises
    ConfigError if the file is not a JSON object, has no ZeRO stage from 1 to 3, or contradicts the flags' batch sizes.
    """
    try:
        with Location.of(path).open() as stream:
            config = json.loads(stream.read())
    except FileNotFoundError:
        raise ConfigError(f"--deepspeed {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed {path}: not valid JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--deepspeed {path}: must be a JSON object")
    for name in ("zero_optimization", "scheduler", "optimizer"):
        if not isinstance(config.get(name, {}), dict):
            raise ConfigError(f"--deepspeed {path}: {name} must be an object")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise ConfigError(f"--deepspeed {path}: zero_optimization.stage must be 1, 2 or 3, got {stage}")
    for name, flag in FLAG_OF_KEY.items():
        _check(path, config, name, getattr(arguments, flag), f"--{flag}")
    global_batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * workers
    _check(path, config, "train_batch_size", global_batch, "batch size · accumulation steps · workers")
    notes = []
    scheduler = config.get("scheduler")
    wanted = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    if scheduler and "lr_scheduler_type" in given and SCHEDULES.get(scheduler.get("type")) != wanted:
        config = {name: value for name, value in config.items() if name != "scheduler"}
        notes.append(f"{path} sets the scheduler {scheduler.get('type')} but the flags set {wanted}: using the flags")
    return DeepSpeedPlan({"fp16": {"enabled": "auto"}, **config}, tuple(notes))


def _check(path: str, config: dict[str, Any], name: str, flag_value: int, flag: str) -> None:
    value = config.get(name, "auto")
    if value not in ("auto", flag_value):
        raise ConfigError(f'--deepspeed {path}: {name} is {value} but {flag} gives {flag_value}: set it to "auto"')
