"""Reads DeepSpeed's JSON configuration and checks it, on the driver, against the flags and against DeepSpeed itself."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from qaray.config import ConfigError
from qaray.finetune.deepspeed_checks import ADAMW_FLAGS, is_adam, offload_problem, parameters, problems
from qaray.models.loading import first_line, quiet_transformers
from qaray.run.storage import Location

# Block → key → flag. A key that the file leaves out takes the value of a flag that the user set.
KEYS_OF_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {"gradient_clipping": ("max_grad_norm",)},
    "optimizer": {
        "lr": ("learning_rate",),
        "betas": ("adam_beta1", "adam_beta2"),
        "eps": ("adam_epsilon",),
        "weight_decay": ("weight_decay",),
    },
    "scheduler": {
        "total_num_steps": ("max_steps", "num_train_epochs"),
        "warmup_max_lr": ("learning_rate",),
        "warmup_num_steps": ("warmup_steps",),
    },
}
# Keys that are always the flags', as is the precision: the file either agrees with them or says "auto".
AUTO = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
SCHEDULES = {"WarmupDecayLR": "linear", "WarmupLR": "constant_with_warmup", "WarmupCosineLR": "cosine"}
STEPS = 10**6  # of a training whose steps are not counted yet


@dataclass(frozen=True)
class DeepSpeedPlan:
    """The DeepSpeed configuration to train with."""

    path: str
    config: dict[str, Any]
    hidden_size: int | None  # of the model, if known: sizes that are "auto" follow from it
    notes: tuple[str, ...] = ()  # one line for the user per change

    @property
    def stage(self) -> int:
        """ZeRO stage, 1 to 3."""
        return int(self.config["zero_optimization"]["stage"])

    def check(self, arguments: Any, steps: int | None = None) -> None:
        """Checks the configuration for these TrainingArguments, with transformers' and DeepSpeed's own validation.

        ``steps``: number of optimizer steps, None if it is not known yet. Raises ConfigError with the key, its value
        and the value that the flags give.
        """
        with quiet_transformers():
            filled = self._filled(arguments, steps)
            if found := next(problems(filled), "") or offload_problem(filled, arguments.optim.value):
                raise self.error(found)

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"--deepspeed {self.path}: {text}")

    def _filled(self, arguments: Any, steps: int | None) -> dict[str, Any]:
        """The configuration with the flags' values for "auto". Raises ConfigError for values that differ from them."""
        from transformers.integrations import HfTrainerDeepSpeedConfig

        config = copy.deepcopy(self.config)
        config["train_batch_size"] = "auto"  # one process here: checked with the number of workers by read_config
        schedule = config.get("scheduler", {}).get("params", {})
        if steps is None:
            total = schedule.get("total_num_steps")
            steps = total if isinstance(total, int) else STEPS
            if arguments.warmup_steps < 1 and "warmup_num_steps" in schedule:  # a share of the steps
                schedule["warmup_num_steps"] = "auto"
        values = HfTrainerDeepSpeedConfig(config)
        values.trainer_config_process(arguments)
        width = {} if self.hidden_size is None else {"hidden_size": self.hidden_size}
        model = SimpleNamespace(config=SimpleNamespace(**width))
        try:
            values.trainer_config_finalize(arguments, model, steps)
        except ValueError as error:
            differing = re.findall(r"^- ds (\S+)=(.*) vs hf (.+?)=(.*)$", str(error), re.MULTILINE)
            if not differing:
                raise self.error(first_line(error)) from None
            raise self.error("; ".join(_mismatch(*each) for each in differing)) from None
        return dict(values.config)


def read_config(path: str, arguments: Any, given: set[str], workers: int, hidden_size: int | None) -> DeepSpeedPlan:
    """The configuration at ``path`` for these TrainingArguments. ``given``: names of the flags that the user set.

    A scheduler that contradicts ``--lr_scheduler_type`` is dropped with a note if the user set that flag. Raises
    ConfigError if the file is not a JSON object, has no ZeRO stage from 1 to 3, contradicts a flag, or is not accepted
    by DeepSpeed.
    """
    config = _read(path)
    for key in AUTO:
        config.setdefault(key, "auto")
    for block in ("fp16", "bf16"):
        config[block] = {"enabled": "auto", **config.get(block, {})}
    notes = []
    if note := _scheduler_note(path, config, arguments, given):
        del config["scheduler"]
        notes.append(note)
    _fill_given(config, given)
    plan = DeepSpeedPlan(path, config, hidden_size, tuple(notes))
    _check_optimizer(plan, arguments, given)
    global_batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * workers
    if config["train_batch_size"] not in ("auto", global_batch):
        flags = f"{arguments.per_device_train_batch_size} · {arguments.gradient_accumulation_steps} · {workers}"
        raise plan.error(
            f"train_batch_size is {config['train_batch_size']} but --per_device_train_batch_size · "
            f'--gradient_accumulation_steps · --num_workers is {flags} = {global_batch}: set it to "auto"'
        )
    plan.check(arguments)
    if config["bf16"]["enabled"] is True:  # agreed with the flags, which each worker adapts to its device
        config["bf16"] = {**config["bf16"], "enabled": "auto"}
    return plan


def _read(path: str) -> dict[str, Any]:
    try:
        with Location.of(path).open() as stream:
            config = json.loads(stream.read(), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise ConfigError(f"--deepspeed {path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"--deepspeed {path}: {first_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--deepspeed {path}: not valid JSON: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--deepspeed {path}: must be a JSON object")
    for name in ("zero_optimization", "scheduler", "optimizer", "bf16", "fp16"):
        block = config.get(name, {})
        if not isinstance(block, dict):
            raise ConfigError(f"--deepspeed {path}: {name} must be an object, got {json.dumps(block)}")
        if not isinstance(block.get("params", {}), dict):
            raise ConfigError(f"--deepspeed {path}: {name}.params must be an object")
        if not isinstance(kind := block.get("type", ""), str):
            raise ConfigError(f"--deepspeed {path}: {name}.type must be a text, got {json.dumps(kind)}")
    if "zero_optimization" not in config:
        raise ConfigError(f"--deepspeed {path}: the block zero_optimization is missing; its stage must be 1, 2 or 3")
    stage = config["zero_optimization"].get("stage")
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        without = " (without ZeRO: leave out --deepspeed)" if stage == 0 else ""
        raise ConfigError(
            f"--deepspeed {path}: zero_optimization.stage must be 1, 2 or 3, got {json.dumps(stage)}{without}"
        )
    return config


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key} occurs twice")
        found[key] = value
    return found


def _scheduler_note(path: str, config: dict[str, Any], arguments: Any, given: set[str]) -> str:
    """Why the file's scheduler is not that of --lr_scheduler_type, '' if it is or if the flag was not given."""
    scheduler = config.get("scheduler")
    if not scheduler or "lr_scheduler_type" not in given:
        return ""
    wanted, kind = str(arguments.lr_scheduler_type.value), scheduler.get("type")
    if SCHEDULES.get(kind) != wanted:
        return f"{path} sets the scheduler {kind} but the flags set {wanted}: using the flags"
    if (warmup := scheduler.get("params", {}).get("warmup_type", "log")) != "linear":
        return (
            f"{path} sets the scheduler {kind}, whose warm-up is {'logarithmic' if warmup == 'log' else warmup}, but "
            f"the flags set {wanted}, whose warm-up is linear: using the flags"
        )
    return ""


def _fill_given(config: dict[str, Any], given: set[str]) -> None:
    """Sets keys that the file leaves out to "auto" where transformers has a value that would be ignored otherwise.

    These are the keys of flags that the user set, and those that a scheduler requires.
    """
    for block, keys in KEYS_OF_FLAGS.items():
        if block and block not in config:
            continue
        known = parameters(block, config[block].get("type")) if block else dict.fromkeys(keys, False)
        if known is None:  # an optimizer whose other params are not checked, or a scheduler that does not exist
            known = dict.fromkeys(("lr", "weight_decay"), False) if block == "optimizer" else {}
        target = config[block].setdefault("params", {}) if block else config
        for key, flags in keys.items():
            if key in known and (given.intersection(flags) or (known[key] and block == "scheduler")):
                target.setdefault(key, "auto")


def _check_optimizer(plan: DeepSpeedPlan, arguments: Any, given: set[str]) -> None:
    """Raises ConfigError if --optim was given beside another optimizer of the file, which would be used silently."""
    optimizer = plan.config.get("optimizer")
    if not optimizer or "optim" not in given:
        return
    wanted = arguments.optim.value
    same = is_adam(plan.config) and wanted.startswith(ADAMW_FLAGS)
    if not same and str(optimizer.get("type", "")).lower() != wanted:
        raise plan.error(
            f"optimizer.type is {optimizer.get('type')} but --optim gives {wanted}: remove the optimizer block to use "
            "the flag, or leave out the flag"
        )


def _mismatch(key: str, value: str, flag: str, flags_value: str) -> str:
    """One difference that transformers found: the key with its value, the flag with its value, and what to do."""
    if value == flags_value:
        return f'{key} is the text "{value}": write the number without quotes'
    if "(calculated)" in flag:
        return f'{key} is {value} but the flags and the examples give {flags_value}: set it to "auto"'
    flags = [f"--{each}" for each in re.sub(r"\|.*", "", flag).split("+")]
    gives = "give" if len(flags) > 1 else "gives"
    return f'{key} is {value} but {" and ".join(flags)} {gives} {flags_value}: set it to "auto", or change the flag'
