"""Where an engine's actors run: looked at by a worker that takes what an actor takes, since a CPU head need not have
what its GPU workers have. It settles ``--engine auto``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TypeVar

from qaray.config import ConfigError, EngineConfig
from qaray.engines.base import actor_resources
from qaray.ledger import ModelShape
from qaray.models import model_shape
from qaray.runtime import LIGHT, actor_gpus

AnyEngineConfig = TypeVar("AnyEngineConfig", bound=EngineConfig)


@dataclass(frozen=True)
class Site:
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


def look(config: EngineConfig) -> Site:
    """Asks a worker. Ray must be connected; where the pool's machines are still to come, this waits for the first."""
    if config.engine in ("echo", "http"):
        return Site()
    import ray

    gpus = actor_gpus(config.gpus_per_actor)
    # One call a process: what it imports is not kept in memory while the run works.
    asked = ray.remote(max_calls=1, **actor_resources(0 if gpus else LIGHT, gpus))(_site)
    return ray.get(asked.remote(config, gpus))


def begun_with(config: AnyEngineConfig, stored: str | None) -> tuple[AnyEngineConfig, str]:
    """The configuration, ``auto`` replaced by the engine that run.json names, and why it is this one."""
    if config.engine != "auto":
        return config, "asked for"
    if stored is not None:
        return config.model_copy(update={"engine": stored}), "auto: the run was begun with it"
    return config, ""


def choose(config: AnyEngineConfig, site: Site, why: str) -> tuple[AnyEngineConfig, str]:
    """The configuration with its engine settled, and why it is this one; ``why``: if that is known already.

    Raises ConfigError if the engine is vllm and a worker cannot import it.
    """
    if config.engine == "vllm" and site.vllm is None:
        raise ConfigError(f"--engine vllm ({why}): a worker cannot import vllm: {site.problem}; install qaray[vllm]")
    if config.engine != "auto":
        return config, why
    if site.vllm is not None:
        return config.model_copy(update={"engine": "vllm"}), f"auto: a worker has vllm {site.vllm}"
    return config.model_copy(update={"engine": "transformers"}), f"auto: no vllm on a worker ({site.problem})"


def _site(config: EngineConfig, gpus: float) -> Site:
    import torch

    from qaray.devices import available_memory, cores, device_name, peaks, pick_dtype

    device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
    dtype = pick_dtype(config.dtype, device)
    version, problem = _vllm() if config.engine != "transformers" else (None, "not looked for")
    known = peaks(device_name(device))
    return Site(
        gpus=gpus,
        device=device_name(device),
        cores=cores(),
        free_memory=available_memory(),
        dtype=str(dtype).removeprefix("torch."),
        flash_attn=importlib.util.find_spec("flash_attn") is not None,
        vllm=version,
        problem=problem,
        peaks=known,
        shape=model_shape(config, str(dtype).removeprefix("torch.")) if known and config.model else None,
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
