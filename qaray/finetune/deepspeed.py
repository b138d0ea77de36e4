"""Reads DeepSpeed's JSON configuration and checks it, on the driver, against the flags and against DeepSpeed itself."""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from qaray.config import ConfigError
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
    "scheduler": {"warmup_max_lr": ("learning_rate",), "warmup_num_steps": ("warmup_steps",)},
}
# Keys that are always the flags': the file either agrees with them or says "auto".
AUTO: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "fp16": {"enabled": "auto"},
    "bf16": {"enabled": "auto"},
}
# Top-level keys that DeepSpeed documents and that are not in its module of constants.
BLOCKS = {
    "activation_checkpointing", "aio", "autotuning", "checkpoint", "comet", "comms_logger", "compile",
    "compression_training", "csv_monitor", "curriculum_learning", "data_efficiency", "datastates_ckpt", "elasticity",
    "expert_parallel", "flops_profiler", "hybrid_engine", "nebula", "pipeline", "sequence_parallel_size",
    "sparse_attention", "tensor_parallel", "tensorboard", "timers", "wandb", "weight_quantization",
    "zero_optimization",
}  # fmt: skip
SCHEDULES = {"WarmupDecayLR": "linear", "WarmupLR": "constant_with_warmup", "WarmupCosineLR": "cosine"}
ADAM = ("adam", "adamw")
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
            self._check_blocks(filled)
            self._check_deepspeed(filled)
            self._check_offload(filled)
            self._check_auto(filled)

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

    def _check_auto(self, config: dict[str, Any]) -> None:
        """Raises ConfigError for keys that are still "auto": neither transformers nor DeepSpeed knows their values."""
        if left := list(_autos(config)):
            raise self.error(f'{left[0]} is "auto", for which no flag has a value: set it to a value, or remove it')

    def _check_blocks(self, config: dict[str, Any]) -> None:
        """Checks what DeepSpeed looks at only when it builds optimizer and schedule, or ignores without a word."""
        from deepspeed.runtime import constants, lr_schedules

        documented = {v for k, v in vars(constants).items() if k.isupper() and isinstance(v, str)} | BLOCKS
        for key in config:
            if key not in documented:
                raise self.error(_unknown(key, documented))
        if optimizer := config.get("optimizer"):
            self._check_parameters("optimizer", optimizer, _optimizers(optimizer.get("type")))
        if scheduler := config.get("scheduler"):
            kind = scheduler.get("type")
            if kind not in lr_schedules.VALID_LR_SCHEDULES:
                raise self.error(
                    f"scheduler.type is {kind!r}: choose from {', '.join(lr_schedules.VALID_LR_SCHEDULES)}"
                )
            self._check_parameters("scheduler", scheduler, [getattr(lr_schedules, kind)])

    def _check_offload(self, config: dict[str, Any]) -> None:
        devices = {}
        for name in ("offload_optimizer", "offload_param"):
            block = config["zero_optimization"].get(name) or {}
            devices[name] = block.get("device", "none") if isinstance(block, dict) else "none"
            if devices[name] == "nvme" and not block.get("nvme_path"):
                raise self.error(f"zero_optimization.{name}.nvme_path is missing, but its device is nvme")
        own_optimizer = config.get("optimizer") or not config.get("zero_force_ds_cpu_optimizer", True)
        if devices["offload_optimizer"] != "none" and not own_optimizer:
            raise self.error(
                "zero_optimization.offload_optimizer needs DeepSpeed's own optimizer: add an optimizer block such as "
                'that of ds_configs/stage3.json, or "zero_force_ds_cpu_optimizer": false'
            )

    def _check_parameters(self, name: str, block: dict[str, Any], classes: list[Any] | None) -> None:
        """Checks the keys of ``block``'s params against the signatures of the classes that may take them."""
        if classes is None:
            return
        if not classes:
            known = "AdamW, Adam, Lamb, Lion, Adagrad, or an optimizer of torch.optim"
            raise self.error(f"{name}.type is {block.get('type')!r}: choose {known}")
        names = {each for known in classes for each in inspect.signature(known).parameters} - {"params", "model_params"}
        names |= {"torch_adam", "adam_w_mode"} if name == "optimizer" else set()
        for key in block.get("params", {}):
            if key not in names:
                raise self.error(_unknown(f"{name}.params.{key}", {f"{name}.params.{each}" for each in names}))

    def _check_deepspeed(self, config: dict[str, Any]) -> None:
        from deepspeed.runtime.config import DeepSpeedConfig
        from pydantic import ValidationError

        try:
            DeepSpeedConfig(config)
        except ValidationError as error:
            raise self.error("; ".join(_invalid(config, each) for each in error.errors())) from None
        except Exception as error:  # DeepSpeed raises assertions, key errors and errors of its own
            raise self.error(first_line(error)) from None


def read_config(path: str, arguments: Any, given: set[str], workers: int, hidden_size: int | None) -> DeepSpeedPlan:
    """The configuration at ``path`` for these TrainingArguments. ``given``: names of the flags that the user set.

    A scheduler that contradicts ``--lr_scheduler_type`` is dropped with a note if the user set that flag. Raises
    ConfigError if the file is not a JSON object, has no ZeRO stage from 1 to 3, contradicts a flag, or is not accepted
    by DeepSpeed.
    """
    config = _read(path)
    for key, value in AUTO.items():
        if isinstance(value, dict) and isinstance(config.get(key, {}), dict):
            config[key] = {**value, **config.get(key, {})}
        config.setdefault(key, value)
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
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed {path}: not valid JSON: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--deepspeed {path}: must be a JSON object")
    for name in ("zero_optimization", "scheduler", "optimizer", "bf16", "fp16"):
        block = config.get(name, {})
        if not isinstance(block, dict) or not isinstance(block.get("params", {}), dict):
            raise ConfigError(f"--deepspeed {path}: {name} must be an object, and its params too")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"--deepspeed {path}: zero_optimization.stage must be 1, 2 or 3, got {stage}")
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
    """Sets keys that the file leaves out to "auto" if the user set their flags, which would be ignored otherwise."""
    for block, keys in KEYS_OF_FLAGS.items():
        if block and (block not in config or (block == "optimizer" and not _is_adam(config))):
            continue
        target = config[block].setdefault("params", {}) if block else config
        for key, flags in keys.items():
            if given.intersection(flags):
                target.setdefault(key, "auto")


def _autos(config: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the keys whose values are "auto"."""
    for key, value in config.items():
        if value == "auto":
            yield path + key
        elif isinstance(value, dict):
            yield from _autos(value, f"{path}{key}.")


def _is_adam(config: dict[str, Any]) -> bool:
    return str(config["optimizer"].get("type", "")).lower() in ADAM


def _check_optimizer(plan: DeepSpeedPlan, arguments: Any, given: set[str]) -> None:
    """Raises ConfigError if --optim was given beside another optimizer of the file, which would be used silently."""
    optimizer = plan.config.get("optimizer")
    if not optimizer or "optim" not in given:
        return
    wanted = str(getattr(arguments.optim, "value", arguments.optim))
    same = wanted.startswith(("adamw_torch", "adamw_hf")) if _is_adam(plan.config) else False
    if not same and str(optimizer.get("type", "")).lower() != wanted:
        raise plan.error(
            f"optimizer.type is {optimizer.get('type')} but --optim gives {wanted}: remove the optimizer block to use "
            "the flag, or leave out the flag"
        )


def _optimizers(kind: Any) -> list[Any] | None:
    """Classes whose signatures show an optimizer's parameters; None if they are not checked, [] if there is none."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    if not isinstance(kind, str):
        return []
    if kind.lower() in ADAM:
        return [DeepSpeedCPUAdam, FusedAdam, torch.optim.AdamW]
    if kind.lower() in DEEPSPEED_OPTIMIZERS:
        return None
    found = getattr(torch.optim, kind, None)
    return [found] if inspect.isclass(found) else []


def _mismatch(key: str, value: str, flag: str, flags_value: str) -> str:
    """One difference that transformers found: the key with its value, the flag with its value, and what to do."""
    flag = re.sub(r"\|.*", "", flag)
    if "(calculated)" in flag:
        return f'{key} is {value} but the flags and the examples give {flags_value}: set it to "auto"'
    named = " and ".join(f"--{each}" for each in flag.split("+"))
    return f'{key} is {value} but {named} gives {flags_value}: set it to "auto", or change the flag'


def _unknown(key: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key {key}{f' (similar: {similar[0]})' if similar else ''}"


def _invalid(config: dict[str, Any], error: Any) -> str:
    """One mistake found by DeepSpeed's own models: the key with its path, and what is wrong."""
    place = [str(part) for part in error["loc"]]
    block = next((name for name, each in config.items() if isinstance(each, dict) and place and place[0] in each), "")
    key = ".".join([block, *place] if block else place)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}"
    return f"{key} is {json.dumps(error['input'])}: {error['msg'].replace('Input should', 'it should')}"
