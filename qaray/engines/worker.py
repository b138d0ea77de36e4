"""Inspects a worker node and resolves ``--engine auto``.

A Ray task with the resources of an actor does the inspection, since the head node may lack the workers' hardware and
packages.
"""

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
from qaray.run.durations import duration
from qaray.run.errors import RunError

FIRST_NOTICE, EVERY_NOTICE = 30.0, 300.0  # seconds until the first notice of a wait, and between notices
AnyEngineConfig = TypeVar("AnyEngineConfig", bound=EngineConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerInfo:
    """Hardware and software of a worker in the engine's pool."""

    gpus: float = 0.0  # per actor
    device: str = ""  # name of the GPU or CPU; '' for engines without local compute
    cores: int = 1  # of the node
    free_memory: int = 0  # of the host, bytes
    dtype: str = ""  # --dtype as resolved on the device, e.g. bfloat16
    flash_attn: bool = False
    vllm: str | None = None  # installed version; None if it cannot be imported
    problem: str = ""  # why vLLM cannot be imported
    peaks: tuple[float, float] | None = None  # of the device: FLOP/s, bytes/s; None if unknown
    shape: ModelShape | None = None  # of the model; None if the peaks are unknown


def inspect_worker(config: EngineConfig, notify: Callable[[str], None]) -> WorkerInfo:
    """Inspects the first node that can hold an actor, waiting for one to join if necessary. Ray must be connected.

    Returns an empty WorkerInfo for the echo and http engines. Raises RunError if no node joins within
    ``config.cluster.wait_hours``.
    """
    if config.engine in ("echo", "http"):
        return WorkerInfo()
    gpus = actor_gpus(config.resources.gpus_per_actor)
    return _answer_of(inspect_this, (config, gpus), gpus, config, notify)


def wait_for_node(config: EngineConfig, notify: Callable[[str], None]) -> None:
    """Waits for the first node that can hold an actor, if actors need a GPU, several CPUs or node labels.

    Raises RunError if no node joins within ``config.cluster.wait_hours``.
    """
    gpus = actor_gpus(config.resources.gpus_per_actor)
    if gpus or config.cluster.labels or config.resources.cpus_per_actor > 1:
        _answer_of(_here, (), gpus, config, notify)


def _here() -> None:
    """No-op task, to wait for a node."""


def _answer_of(
    work: Callable[..., T], arguments: tuple[Any, ...], gpus: float, config: EngineConfig, notify: Callable[[str], None]
) -> T:
    """Result of ``work(*arguments)`` on the first node that can hold an actor."""
    import ray

    # One call per process: the imports do not stay in memory during the run.
    cpus = config.resources.cpus_per_actor
    wanted = cpus if cpus > 1 else 0 if gpus else LIGHT  # one CPU or less is free on any node sooner or later
    remote_work = ray.remote(max_calls=1, **actor_resources(wanted, gpus, config.cluster.labels))(work)
    task = remote_work.remote(*arguments)
    needed = node_description(cpus, gpus, config.cluster.labels)
    start, timeout = time.monotonic(), FIRST_NOTICE
    while not ray.wait([task], timeout=min(timeout, seconds_left(start, config.cluster.wait_hours)))[0]:
        waited = time.monotonic() - start
        if waited >= 3600 * config.cluster.wait_hours:
            ray.cancel(task, force=True)
            raise RunError(
                f"no node with {needed} joined the cluster within {config.cluster.wait_hours:g} hours (--wait_hours); "
                "completed work is saved; `ray status` shows the cluster's resources"
            )
        notify(f"waiting for a node with {needed} ({duration(waited)} so far)")
        timeout = EVERY_NOTICE
    answer: T = ray.get(task)
    return answer


def node_description(cpus: float, gpus: float, labels: Mapping[str, str]) -> str:
    """The resources and labels that an actor needs, as text."""
    several = f"{cpus:g} free CPUs" if cpus > 1 else ""
    device = " and ".join(filter(None, [f"{gpus:g} GPU" if gpus else "", several])) or "a free CPU"
    return f"{device} and the labels {', '.join(f'{k}={v}' for k, v in labels.items())}" if labels else device


def seconds_left(begun: float, hours: float) -> float:
    """Seconds left of a wait of ``hours`` that began at ``begun`` (monotonic clock), at least 0.1."""
    return max(0.1, begun + 3600 * hours - time.monotonic())


def resume_engine(config: AnyEngineConfig, stored: str | None) -> tuple[AnyEngineConfig, str]:
    """(configuration, reason for its engine), with ``auto`` replaced by the engine ``stored`` in run.json.

    Without a stored engine ``auto`` is kept, and the reason is empty.
    """
    if config.engine != "auto":
        return config, "asked for"
    if stored is not None:
        return config.replace(engine=stored), "auto: the run was begun with it"
    return config, ""


def resolve_engine(config: AnyEngineConfig, worker: WorkerInfo, reason: str) -> tuple[AnyEngineConfig, str]:
    """(configuration, reason for its engine), with ``auto`` replaced by vllm or transformers.

    ``reason`` is returned for an engine other than ``auto``. Raises ConfigError if the engine is vllm and the worker
    cannot import it.
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
    """Inspects the node that this process runs on."""
    import torch

    from qaray.models.hardware import available_memory, cores, device_name, peaks, pick_dtype

    device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
    dtype = pick_dtype(config.model.dtype, device)
    version, problem = _vllm() if config.engine != "transformers" else (None, "not looked for")
    device_peaks = peaks(device_name(device))
    return WorkerInfo(
        gpus=gpus,
        device=device_name(device),
        cores=cores(),
        free_memory=available_memory(),
        dtype=str(dtype).removeprefix("torch."),
        flash_attn=importlib.util.find_spec("flash_attn") is not None,
        vllm=version,
        problem=problem,
        peaks=device_peaks,
        shape=model_shape(config, str(dtype).removeprefix("torch.")) if device_peaks and config.model_name else None,
    )


def _vllm() -> tuple[str | None, str]:
    """(version, '') if vLLM can be imported, else (None, reason)."""
    if importlib.util.find_spec("vllm") is None:
        return None, "it is not installed"
    try:
        import vllm
    except Exception as error:  # a build for other hardware can raise anything
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return str(vllm.__version__), ""
