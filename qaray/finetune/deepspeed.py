"""DeepSpeed's JSON: read, held against the flags, made ready for transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qaray.config import ConfigError
from qaray.run.storage import Location

# What the JSON calls a figure that a flag gives too; "auto" takes the flag's.
FLAG_OF_KEY = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}
SCHEDULES = {"WarmupDecayLR": "linear", "WarmupLR": "constant_with_warmup", "WarmupCosineLR": "cosine"}


@dataclass(frozen=True)
class DeepSpeedPlan:
    """The JSON as it will be used."""

    config: dict[str, Any]
    notes: tuple[str, ...] = ()  # a line for the user on each thing that was changed

    @property
    def stage(self) -> int:
        """Of ZeRO: 1 to 3."""
        return int(self.config["zero_optimization"]["stage"])


def read_config(path: str, arguments: Any, given: set[str], workers: int) -> DeepSpeedPlan:
    """The JSON at ``path`` for these TrainingArguments. ``given``: names of the flags that the user typed.

    A scheduler that contradicts a typed ``--lr_scheduler_type`` is dropped, and a note says so. Raises ConfigError if
    the file is no JSON object, or names a batch size that the flags do not.
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
    whole = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * workers
    _check(path, config, "train_batch_size", whole, "batch size · accumulation steps · workers")
    notes = []
    scheduler = config.get("scheduler")
    wanted = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    if scheduler and "lr_scheduler_type" in given and SCHEDULES.get(scheduler.get("type")) != wanted:
        config = {name: value for name, value in config.items() if name != "scheduler"}
        notes.append(
            f"{path} asks for the scheduler {scheduler.get('type')}, the flags for {wanted}: the flags' is used"
        )
    return DeepSpeedPlan({"fp16": {"enabled": "auto"}, **config}, tuple(notes))


def _check(path: str, config: dict[str, Any], name: str, flag_value: int, flag: str) -> None:
    value = config.get(name, "auto")
    if value not in ("auto", flag_value):
        raise ConfigError(f'--deepspeed {path}: {name} is {value} but {flag} gives {flag_value}: set it to "auto"')
