"""Where an engine's actors run: looked at by a worker that takes what an actor takes, since a CPU head need not have
what its GPU workers have. It settles ``--engine auto``."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from qaray.config import ConfigError, EngineConfig
from qaray.engines.pool import actor_resources
from qaray.models.shape import ModelShape, model_shape
from qaray.run.cluster import LIGHT, actor_gpus
from qaray.run.directory import RunError
from qaray.run.durations import duration

FIRST_WORD, EVERY_WORD = 30.0, 300.0  # seconds until the user hears that nothing has come, and between such words
AnyEngineConfig = TypeVar("AnyEngineConfig", bound=EngineConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker of the engine's pool has."""

    gpus: float = 0.0  # that an actor takes
    device: str = ""  # the GPU's name, or the CPU's; '' where the engine computes nothing
    cores: int = 1  # of the machine
    free_memory: int = 0  # of the host, bytes
    dtype: str = ""  # what ``auto`` stands for there
    flash_attn: bool = False
    vllm: str | None = None  # its version, None where it cannot be imported
    problem: str = ""  # why it cannot
    peaks: tuple[float, float] | None = None  # of the device: FLOP/s, bytes/s; None where they are not known
    shape: ModelShape | None = None  # of the model, where the peaks are known


def inspect_worker(config: EngineConfig, notify: Callable[[str], None]) -> WorkerInfo:
    """Asks a worker. Ray must be connected; where the pool's machines are still to come, this waits for the first.

    Raises RunError if none came within ``config.cluster.wait_hours``.
    """
    if config.engine in ("echo", "http"):
        return WorkerInfo()
    gpus = actor_gpus(config.resources.gpus_per_actor)
    return _answer_of(inspect_this, (config, gpus), gpus, config, notify)


def wait_for_node(config: EngineConfig, notify: Callable[[str], None]) -> None:
    """Waits as long as ``inspect_worker`` for the first node that can hold an actor, if it takes more than a CPU."""
    gpus = actor_gpus(config.resources.gpus_per_actor)
    if gpus or config.cluster.labels:
        _answer_of(_here, (), gpus, config, notify)


def _here() -> None:
    """What a node is asked that has only to be there."""


def _answer_of(
    work: Callable[..., T], arguments: tuple[Any, ...], gpus: float, config: EngineConfig, notify: Callable[[str], None]
) -> T:
    """What ``work`` returns on the first node that has what an actor needs."""
    import ray

    # One call a process: what it imports is not kept in memory while the run works.
    ask = ray.remote(max_calls=1, **actor_resources(0 if gpus else LIGHT, gpus, config.cluster.labels))(work)
    asked = ask.remote(*arguments)
    place = wanted_place(gpus, config.cluster.labels)
    begun, patience = time.monotonic(), FIRST_WORD
    while not ray.wait([asked], timeout=min(patience, left_of(begun, config.cluster.wait_hours)))[0]:
        waited = time.monotonic() - begun
        if waited >= 3600 * config.cluster.wait_hours:
            ray.cancel(asked, force=True)
            raise RunError(
                f"no node with {place} joined the cluster within {config.cluster.wait_hours:g} hours (--wait_hours); "
                "completed work is saved; `ray status` shows the cluster's resources"
            )
        notify(f"waiting for a node with {place} ({duration(waited)} so far)")
        patience = EVERY_WORD
    answer: T = ray.get(asked)
    return answer


def wanted_place(gpus: float, labels: Mapping[str, str]) -> str:
    """What a node must have, in words."""
    device = f"{gpus:g} GPU" if gpus else "a free CPU"
    return f"{device} and the labels {', '.join(f'{k}={v}' for k, v in labels.items())}" if labels else device


def left_of(begun: float, hours: float) -> float:
    """Seconds that are left of a wait, at least a moment."""
    return max(0.1, begun + 3600 * hours - time.monotonic())


def resume_engine(config: AnyEngineConfig, stored: str | None) -> tuple[AnyEngineConfig, str]:
    """The configuration, ``auto`` replaced by the engine that run.json names, and why it is this one."""
    if config.engine != "auto":
        return config, "asked for"
    if stored is not None:
        return config.replace(engine=stored), "auto: the run was begun with it"
    return config, ""


def resolve_engine(config: AnyEngineConfig, worker: WorkerInfo, reason: str) -> tuple[AnyEngineConfig, str]:
    """The configuration with its engine settled, and why it is this one; ``reason``: if that is known already.

    Raises ConfigError if the engine is vllm and a worker cannot import it.
    """
    if config.engine == "vllm" and worker.vllm is None:
        raise ConfigError(
            f"--engine vllm ({reason}): a worker cannot import vllm: {worker.problem}; install qaray[vllm]"
        )
    if config.engine != "auto":
        return config, reason
    if worker.vllm is not None:
        return config.replace(engine="vllm"), f"auto: a worker has vllm {worker.vllm}"
    return config.replace(engine="transformers"), f"auto: no vllm on a worker ({worker.problem})"


def inspect_this(config: EngineConfig, gpus: float) -> WorkerInfo:
    import torch

    from qaray.models.hardware import available_memory, cores, device_name, peaks, pick_dtype

    device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
    dtype = pick_dtype(config.model.dtype, device)
    version, problem = _vllm() if config.engine != "transformers" else (None, "not looked for")
    known = peaks(device_name(device))
    return WorkerInfo(
        gpus=gpus,
        device=device_name(device),
        cores=cores(),
        free_memory=available_memory(),
        dtype=str(dtype).removeprefix("torch."),
        flash_attn=importlib.util.find_spec("flash_attn") is not None,
        vllm=version,
        problem=problem,
        peaks=known,
        shape=model_shape(config, str(dtype).removeprefix("torch.")) if known and config.model_name else None,
    )


def _vllm() -> tuple[str | None, str]:
    """(version, '') of vLLM if it can be imported, else (None, why not)."""
    if importlib.util.find_spec("vllm") is None:
        return None, "it is not installed"
    try:
        import vllm
    except Exception as error:  # a build for other hardware fails in many ways
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return str(vllm.__version__), ""
