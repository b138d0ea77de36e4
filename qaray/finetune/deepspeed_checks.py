"""What DeepSpeed accepts in a configuration: its own validation, and what it checks only in training processes."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from qaray.models.loading import first_line

ADAM = ("adam", "adamw")
ADAMW_FLAGS = ("adamw_torch", "adamw_hf")  # how the values of --optim begin that are torch's AdamW
# Top-level keys that DeepSpeed documents and that are not in its module of constants.
BLOCKS = {
    "activation_checkpointing", "aio", "autotuning", "checkpoint", "comet", "comms_logger", "compile",
    "compression_training", "csv_monitor", "curriculum_learning", "data_efficiency", "datastates_ckpt", "elasticity",
    "expert_parallel", "flops_profiler", "hybrid_engine", "nebula", "pipeline", "sequence_parallel_size",
    "sparse_attention", "tensor_parallel", "tensorboard", "timers", "wandb", "weight_quantization",
    "zero_optimization",
}  # fmt: skip
# Features that need another training loop, and the key that switches them on.
OTHER_LOOPS = {
    "autotuning": "enabled", "compression_training": "enabled", "curriculum_learning": "enabled",
    "data_efficiency": "enabled", "elasticity": "enabled", "hybrid_engine": "enabled", "tensor_parallel": "autotp_size",
    "checkpoint": "load_universal",
}  # fmt: skip
MONITORS = {"wandb": "wandb", "comet": "comet_ml", "tensorboard": "tensorboard"}  # block → package
# Optimizers that ZeRO takes without ``zero_allow_untested_optimizer``.
TESTED = (*ADAM, "adagrad", "lion", "muon")
KEYS = {"optimizer": {"type", "params", "legacy_fusion"}, "scheduler": {"type", "params"}}
# Keys whose "auto" accelerate replaces when it starts DeepSpeed.
LEFT_TO_ACCELERATE = {
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    *(f"zero_optimization.offload_{part}.{key}" for part in ("optimizer", "param") for key in ("device", "nvme_path")),
}


def problems(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a configuration whose "auto" values are filled, one line each."""
    yield from _deepspeeds_own(config)
    yield from _unknown_keys(config)
    yield from _other_loops(config)
    yield from _optimizer(config)
    yield from _scheduler(config)
    yield from _offload(config)
    for key in _autos(config):
        if key not in LEFT_TO_ACCELERATE:
            yield f'{key} is "auto", for which no flag has a value: set it to a value, or remove it'


def parameters(block: str, kind: Any) -> dict[str, bool] | None:
    """The params of an optimizer or scheduler of DeepSpeed: name → whether it is required; None if they are unknown."""
    classes = _optimizers(kind) if block == "optimizer" else _schedulers(kind)
    if not classes:
        return None
    found: dict[str, bool] = {}
    for known in classes:
        for name, each in inspect.signature(known).parameters.items():
            if name not in ("params", "model_params", "optimizer"):
                found[name] = found.get(name, True) and each.default is inspect.Parameter.empty
    if block == "optimizer":
        found |= {"torch_adam": False, "adam_w_mode": False}
    return found


def is_adam(config: dict[str, Any]) -> bool:
    return str(config["optimizer"].get("type", "")).lower() in ADAM


def _deepspeeds_own(config: dict[str, Any]) -> Iterator[str]:
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    try:
        DeepSpeedConfig(config)
    except ValidationError as error:
        yield "; ".join(_invalid(config, each) for each in error.errors())
    except Exception as error:  # DeepSpeed raises assertions, key errors and errors of its own
        yield first_line(error)


def _unknown_keys(config: dict[str, Any]) -> Iterator[str]:
    from deepspeed.runtime import constants

    documented = {v for k, v in vars(constants).items() if k.isupper() and isinstance(v, str)} | BLOCKS
    yield from (_unknown(key, documented) for key in config if key not in documented)
    for name, known in KEYS.items():
        paths = {f"{name}.{key}" for key in known}
        yield from (_unknown(f"{name}.{key}", paths) for key in config.get(name, {}) if key not in known)


def _other_loops(config: dict[str, Any]) -> Iterator[str]:
    for name, key in OTHER_LOOPS.items():
        block = config.get(name)
        value = block.get(key) if isinstance(block, dict) else None
        if value and not (key == "autotp_size" and value == 1):
            yield f"{name}.{key} is {json.dumps(value)}: training here is data-parallel, by ZeRO: remove {name}"
    if config.get("pipeline") or config.get("sequence_parallel_size", 1) != 1:
        name = "pipeline" if config.get("pipeline") else "sequence_parallel_size"
        yield f"{name} is set: training here is data-parallel, by ZeRO: remove it"
    for name, package in MONITORS.items():
        block = config.get(name)
        if isinstance(block, dict) and block.get("enabled") and find_spec(package) is None:
            yield f"{name}.enabled is true, but the package {package} is not installed"


def _optimizer(config: dict[str, Any]) -> Iterator[str]:
    optimizer = config.get("optimizer")
    if not optimizer:
        return
    kind = optimizer.get("type")
    if _optimizers(kind) == []:
        yield f"optimizer.type is {kind!r}: choose AdamW, Adam, Lion, Adagrad, Lamb, or an optimizer of torch.optim"
    elif kind.lower() not in TESTED and not config.get("zero_allow_untested_optimizer"):
        yield f'optimizer.type is {kind}, which ZeRO takes only with "zero_allow_untested_optimizer": true'
    yield from _parameters("optimizer", optimizer)


def _scheduler(config: dict[str, Any]) -> Iterator[str]:
    scheduler = config.get("scheduler")
    if not scheduler:
        return
    if not _schedulers(scheduler.get("type")):
        from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES

        yield f"scheduler.type is {scheduler.get('type')!r}: choose from {', '.join(VALID_LR_SCHEDULES)}"
    warmup = scheduler.get("params", {}).get("warmup_type", "log")
    if warmup not in ("log", "linear"):
        yield f"scheduler.params.warmup_type is {json.dumps(warmup)}: choose log or linear"
    yield from _parameters("scheduler", scheduler)


def _parameters(block: str, values: dict[str, Any]) -> Iterator[str]:
    known, given = parameters(block, values.get("type")), values.get("params", {})
    if known is None:
        return
    paths = {f"{block}.params.{name}" for name in known}
    for name, value in given.items():
        if name not in known:
            yield _unknown(f"{block}.params.{name}", paths)
        elif value is None:
            yield f"{block}.params.{name} is null: set it to a value, or remove it"
    for name, required in known.items():
        if required and name not in given:
            yield f"{block}.params.{name} is missing"


def _offload(config: dict[str, Any]) -> Iterator[str]:
    for name in ("offload_optimizer", "offload_param"):
        block = config["zero_optimization"].get(name)
        if isinstance(block, dict) and block.get("device") == "nvme" and not block.get("nvme_path"):
            yield f"zero_optimization.{name}.nvme_path is missing, but its device is nvme"


def offload_problem(config: dict[str, Any], optim: str) -> str:
    """Why the flags' optimizer cannot be offloaded to host memory, "" if it can: accelerate replaces AdamW's only."""
    block = config["zero_optimization"].get("offload_optimizer")
    offloaded = isinstance(block, dict) and block.get("device", "none") not in ("none", None)
    forced = config.get("zero_force_ds_cpu_optimizer", True)
    if not offloaded or config.get("optimizer") or not forced or optim.startswith(ADAMW_FLAGS):
        return ""
    return (
        f"zero_optimization.offload_optimizer uses DeepSpeed's CPU AdamW, but --optim gives {optim}: set "
        '"zero_force_ds_cpu_optimizer": false, or leave out the flag'
    )


def _optimizers(kind: Any) -> list[Any] | None:
    """Classes whose signatures show an optimizer's parameters; None if they are not checked, [] if there is none."""
    import torch
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    if not isinstance(kind, str):
        return []
    adam = [DeepSpeedCPUAdam, FusedAdam, torch.optim.AdamW]
    own = {"adam": adam, "adamw": adam, "lion": [DeepSpeedCPULion, FusedLion], "adagrad": [DeepSpeedCPUAdagrad]}
    if kind.lower() in DEEPSPEED_OPTIMIZERS:
        return own.get(kind.lower())
    found = getattr(torch.optim, kind, None)
    return [found] if inspect.isclass(found) else []


def _schedulers(kind: Any) -> list[Any]:
    from deepspeed.runtime import lr_schedules

    return [getattr(lr_schedules, kind)] if kind in lr_schedules.VALID_LR_SCHEDULES else []


def _autos(config: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the keys whose values are "auto"."""
    for key, value in config.items():
        if value == "auto":
            yield path + key
        elif isinstance(value, dict):
            yield from _autos(value, f"{path}{key}.")


def _unknown(key: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key {_shown(key)}{f' (similar: {similar[0]})' if similar else ''}"


def _invalid(config: dict[str, Any], error: Any) -> str:
    """One mistake found by DeepSpeed's own models: the key with its path, and what is wrong."""
    place = [str(part) for part in error["loc"]]
    block = next((name for name, each in config.items() if isinstance(each, dict) and place and place[0] in each), "")
    key = ".".join([block, *place] if block else place)
    if error["type"] == "extra_forbidden":
        return f"unknown key {_shown(key)}"
    text = error["msg"].replace("Input should", "it should")
    return f"{_shown(key)} is {_shown(json.dumps(error['input'], default=str))}: {text}"


def _shown(text: str) -> str:
    """A text of the file in one line, and not the whole of a long one."""
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}…"
