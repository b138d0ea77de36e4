"""TrainingArguments of a fine-tuning: built from flags, and checked for values with which nothing can be trained.

The checks are those of transformers itself wherever it has any, made by the driver before a training process starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qaray.config import ConfigError
from qaray.finetune.flags import FALSE, TRUE
from qaray.models.hardware import cpu_has_bf16
from qaray.models.loading import first_line, quiet_transformers

# Settings that the original hard-codes, and settings that the training loop needs.
DEFAULTS = {"gradient_checkpointing": "True", "remove_unused_columns": "False", "disable_tqdm": "True"}
AT_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "eval_delay": 0,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "neftune_noise_alpha": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "ddp_timeout": 1,
    "seed": 0,
    "data_seed": 0,
}
BELOW: dict[str, float] = {"adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}
POSITIVE = ("learning_rate", "num_train_epochs")


def for_cpu(flags: dict[str, str]) -> dict[str, str]:
    """The flags for training on this machine's CPU: without tf32, and float32 unless it supports bfloat16 natively."""
    off = ["tf32"] if cpu_has_bf16() else ["tf32", "bf16", "bf16_full_eval"]
    return {name: "False" if name in off and value.lower() in TRUE else value for name, value in flags.items()}


def precision_notes(flags: dict[str, str]) -> list[str]:
    """One line for each precision that the flags ask for and this machine's CPU does not have."""
    kept, why = for_cpu(flags), "this CPU does not support bfloat16 natively; training in float32, which is faster"
    reasons = {"tf32": "a CPU has no TF32: without effect", "bf16": why, "bf16_full_eval": why}
    return [f"--{name} {flags[name]}: {reasons[name]}" for name in flags if flags[name] != kept[name]]


def training_arguments(flags: dict[str, str], folder: str, deepspeed: dict[str, Any] | None, *, use_cpu: bool) -> Any:
    """The flags as TrainingArguments. With a ZeRO-3 ``deepspeed`` configuration, models created later load sharded.

    Raises ConfigError for a value that transformers rejects, or rejects on this device.
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
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(_plain(first_line(error))) from None
    if parsed.gradient_checkpointing and parsed.gradient_checkpointing_kwargs is None:
        parsed.gradient_checkpointing_kwargs = {"use_reentrant": False}
    return parsed


def checked_arguments(flags: dict[str, str], has_eval_data: bool) -> Any:
    """TrainingArguments for the driver. Raises ConfigError for what cannot train on any device."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        on_any_device = {name: value for name, value in flags.items() if name != "tf32"}
        _check_words(flags)
        arguments = training_arguments(on_any_device, folder, None, use_cpu=True)
        _check_values(arguments)
        _check_meaning(arguments, has_eval_data)
        _check_packages(arguments)
        _check_scheduler(arguments)
    return arguments


def check_device(flags: dict[str, str]) -> None:
    """Checks the flags against this machine's GPU. Raises ConfigError for a precision that it does not support."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        try:
            training_arguments(flags, folder, None, use_cpu=False)
        except ConfigError as error:
            name = torch.cuda.get_device_name() if torch.cuda.is_available() else "PyTorch finds no GPU"
            raise ConfigError(f"{error} (on a worker's device: {name})") from None


def check_cpu(arguments: Any) -> None:
    """Raises ConfigError for a precision that no CPU supports."""
    if arguments.fp16 or arguments.fp16_full_eval:
        raise ConfigError("--fp16 True requires GPUs, but training runs on CPUs: use --bf16 True, or leave it out")


def steps_of(arguments: Any, examples: int, workers: int) -> int:
    """Number of optimizer steps of a training, as transformers' Trainer counts them."""
    batches = examples / arguments.per_device_train_batch_size
    each = math.floor if arguments.dataloader_drop_last else math.ceil
    steps = math.ceil(each(each(batches) / workers) / arguments.gradient_accumulation_steps)
    if not steps or arguments.max_steps > 0:
        return max(0, arguments.max_steps) if steps else 0
    return math.ceil(arguments.num_train_epochs * steps)


def _check_words(flags: dict[str, str]) -> None:
    """Values of which transformers does not name the flag, divides by, or that this machine cannot judge."""
    for name in ("logging_steps", "save_steps", "eval_steps", "warmup_steps"):
        try:
            number = float(flags.get(name, 1))
        except ValueError:
            continue  # transformers says what it is
        may_be_zero = name == "warmup_steps"
        if number < 0 or (number == 0 and not may_be_zero):
            raise _limit(name, "at least 0" if may_be_zero else "more than 0", flags[name])
    if "tf32" in flags and flags["tf32"].lower() not in (*TRUE, *FALSE):
        raise ConfigError(f"--tf32 must be True or False, got {flags['tf32']!r}")
    for name, value in flags.items():
        if value.startswith("{"):
            try:
                json.loads(value)
            except ValueError as error:
                raise ConfigError(f"--{name}: not valid JSON: {first_line(error)}") from None


def _check_values(arguments: Any) -> None:
    steps_given = arguments.max_steps > 0
    if arguments.max_steps == 0:
        raise ConfigError("--max_steps must be at least 1, or -1 for --num_train_epochs epochs, got 0")
    for field in dataclasses.fields(arguments):
        name, value = field.name, getattr(arguments, field.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not math.isfinite(value):
            raise _limit(name, "a finite number", value)
        if name in POSITIVE and not value > 0 and not (name == "num_train_epochs" and steps_given):
            raise _limit(name, "more than 0", value)
        if name in AT_LEAST and not value >= AT_LEAST[name]:
            raise _limit(name, f"at least {AT_LEAST[name]:g}", value)
        if name in BELOW and not value < BELOW[name]:
            raise _limit(name, f"less than {BELOW[name]}", value)


def _check_meaning(arguments: Any, has_eval_data: bool) -> None:
    """Combinations that transformers refuses late, or that contradict how the loop works."""
    if arguments.remove_unused_columns:
        raise ConfigError(
            "--remove_unused_columns True is not supported: it would remove the places of examples and labels"
        )
    if arguments.save_strategy == "best":
        raise ConfigError("--save_strategy best is not supported: the model is made from the last checkpoint")
    strategy = arguments.eval_strategy.value
    if not has_eval_data and (strategy != "no" or arguments.do_eval):
        flag = "--do_eval True" if strategy == "no" else f"--eval_strategy {strategy}"
        raise ConfigError(f"{flag} needs held-out examples: add --eval_data_path, or leave it out")
    if arguments.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        raise ConfigError(
            f"--lr_scheduler_type {arguments.lr_scheduler_type.value} is not supported: choose one that depends on the "
            "step alone, such as constant_with_warmup, linear or cosine"
        )


def _check_packages(arguments: Any) -> None:
    """Packages that the flags need and transformers imports only in the training processes."""
    from transformers import Trainer
    from transformers.integrations import get_available_reporting_integrations

    available = set(get_available_reporting_integrations())
    if missing := [name for name in arguments.report_to if name not in available]:
        hint = f"available: {', '.join(sorted(available)) or 'none'}"
        raise ConfigError(f"--report_to {missing[0]}: its package is not installed, or the name is unknown ({hint})")
    if arguments.use_liger_kernel and find_spec("liger_kernel") is None:
        raise ConfigError("--use_liger_kernel True: the package is not installed: pip install liger-kernel")
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, RuntimeError) as error:
        if "pass a" in str(error):  # an optimizer of layers, which needs the model
            return
        raise ConfigError(f"--optim {arguments.optim.value}: {_plain(first_line(error))}") from None


def _check_scheduler(arguments: Any) -> None:
    import torch
    from transformers import get_scheduler

    name = arguments.lr_scheduler_type.value
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(
            name,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--lr_scheduler_type {name} with --lr_scheduler_kwargs {arguments.lr_scheduler_kwargs}: "
            f"{_plain(first_line(error))}"
        ) from None


def _limit(name: str, limits: str, value: Any) -> ConfigError:
    return ConfigError(f"--{name} must be {limits}, got {value}")


def _plain(text: str) -> str:
    """A message of transformers without its markup."""
    return text.replace("`", "").strip()
