"""The flags of transformers' TrainingArguments, as SciQAG's fine-tuning command takes them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import re
from pathlib import Path
from typing import Any

from qaray.config import ConfigError, FineTuneConfig
from qaray.models.hardware import cpu_has_bf16
from qaray.models.loading import quiet_transformers

# Old flag → transformers' current name.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # below 1: a share of the steps
}
# Flags without effect, accepted so that old scripts work.
IGNORED = {"overwrite_output_dir", "save_safetensors", "logging_dir", "group_by_length"}
# Flags that qaray sets itself or does not support, and the reason.
MANAGED = {
    "use_cpu": "--use_gpu says what trains",
    "no_cuda": "--use_gpu says what trains",
    "resume_from_checkpoint": "a run resumes by itself",
    "save_only_model": "the model is made from whole checkpoints",
    "load_best_model_at_end": "the model is made from the last checkpoint",
    "auto_find_batch_size": "batches are grouped by length before the first step",
    "debug": "QARAY_DEBUG=1 shows what Ray and the workers log",
    "label_smoothing_factor": "the loss is computed on the answer's tokens only",
}
# Settings that the original hard-codes, and settings that the training loop needs.
DEFAULTS = {"gradient_checkpointing": "True", "remove_unused_columns": "False", "disable_tqdm": "True"}


def normal(flags: dict[str, str]) -> dict[str, str]:
    """The flags under transformers' current names, without IGNORED ones.

    Raises ConfigError for unsupported or unknown flags.
    """
    with quiet_transformers():
        from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    named = {RENAMED.get(name, name): value for name, value in flags.items() if name not in IGNORED}
    for name in named:
        if name in MANAGED:
            raise ConfigError(f"--{name} is not supported: {MANAGED[name]}")
        if name not in known:
            similar = [f"--{each}" for each in difflib.get_close_matches(name, [*known, *FineTuneConfig.flags()])]
            hint = f" (similar: {', '.join(similar)})" if similar else ""
            raise ConfigError(f"no such option: --{name}: not a flag of fine-tune nor of TrainingArguments{hint}")
    return named


def for_cpu(flags: dict[str, str]) -> dict[str, str]:
    """The flags for training on this machine's CPU: float32 unless it supports bfloat16 natively."""
    asked = flags.get("bf16", "").lower() in ("true", "1", "yes", "y", "t")
    return {**flags, "bf16": "False"} if asked and not cpu_has_bf16() else flags


def training_arguments(flags: dict[str, str], folder: str, deepspeed: dict[str, Any] | None, *, use_cpu: bool) -> Any:
    """The flags as TrainingArguments. With a ZeRO-3 ``deepspeed`` configuration, models created later load sharded.

    Raises ConfigError for a value that transformers rejects.
    """
    with quiet_transformers():
        from transformers import HfArgumentParser, TrainingArguments

    values = {**DEFAULTS, **flags, "output_dir": folder, "use_cpu": str(use_cpu)}
    if deepspeed is not None:
        file = Path(folder) / "deepspeed.json"
        file.write_text(json.dumps(deepspeed))
        values["deepspeed"] = str(file)
    line = [f"--{name}={value}" for name, value in values.items()]
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            (parsed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line, look_for_args_file=False)
    except SystemExit:
        text = stderr.getvalue().strip().splitlines()[-1:]
        raise ConfigError(re.sub(r"^.*error: ", "", text[0]) if text else "invalid training arguments") from None
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error).strip().splitlines()[0]) from None
    if parsed.gradient_checkpointing and parsed.gradient_checkpointing_kwargs is None:
        parsed.gradient_checkpointing_kwargs = {"use_reentrant": False}
    return parsed
