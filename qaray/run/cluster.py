"""Ray for a run: joins the cluster that is there or starts a local one, and keeps its chatter away from the user."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qaray.config import Cluster
from qaray.run.directory import RunError

# Light stages (reading, prompting, writing) take this share of a logical CPU, so that they never starve the engine's
# actors of theirs, nor are starved on a cluster of two.
LIGHT = 0.25
DEBUG = "QARAY_DEBUG"  # environment variable
CONNECTIONS = 3  # tries to join or to start a cluster
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


def debugging() -> bool:
    """Whether what Ray, vLLM and the workers log is shown: QARAY_DEBUG, or --debug True, which sets it."""
    return os.environ.get(DEBUG, "").lower() not in ("", "0", "false")


def connect(cluster: Cluster = Cluster()) -> None:  # noqa: B008  frozen
    """Connects to ``cluster.address``, else RAY_ADDRESS or the job's cluster, else starts a local cluster.

    Does nothing if the process is connected. A local cluster gets at least four logical CPUs: light stages share them.
    Raises RunError if the cluster does not answer, or does not start in time.
    """
    # Light stages share CPUs, so that workers outnumber these: no matter for concern. Read when Ray is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    import ray

    if ray.is_initialized():
        configure()
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if debugging():
        options |= {"logging_level": logging.INFO, "log_to_driver": True}
        if JOB not in os.environ:  # a job's environment is its own, and is not merged with another
            options["runtime_env"] = {"env_vars": {DEBUG: "1"}}
    else:
        # Ray's core writes errors of its own workings into the driver's terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    named = cluster.address or os.environ.get("RAY_ADDRESS")
    if named:
        options["address"] = cluster.address
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options |= {"address": "local", "num_cpus": cluster.local_cpus or max(4, cores), "include_dashboard": False}
    try:
        _init(options)
    except Exception as error:  # Ray raises errors of many kinds here, a bare Exception where a node is late
        which = f"the Ray cluster at {named} cannot be joined" if named else "no local Ray cluster could be started"
        words = " ".join((str(error) or type(error).__name__).split())[:300]
        raise RunError(f"{which}: {words} ({DEBUG}=1 shows Ray's log)") from error
    configure()


def _init(options: dict[str, Any]) -> None:
    """Connects; again where a busy machine did not answer in the seconds that Ray gives it, 20 to join and 30 to start.

    Ray raises a bare Exception where a local node is late.
    """
    import ray

    for left in reversed(range(CONNECTIONS)):
        try:
            with no_standard_error():  # where the core says that it heeds RAY_BACKEND_LOG_LEVEL
                ray.init(**options)
        except Exception as error:
            late = isinstance(error, ConnectionError) or type(error) is Exception
            if not left or not late:
                raise
            ray.shutdown()  # of what a late start left behind
        else:
            return


@contextlib.contextmanager
def no_standard_error() -> Iterator[None]:
    """Nothing written to file descriptor 2 inside the block reaches the user; Python's errors are raised as ever."""
    if debugging():
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def quiet_llm() -> Iterator[None]:
    """ray.data.llm, and vLLM with it, set up in silence: they log, and start Ray's own logging anew."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if debugging() else "ERROR")
    try:
        with no_standard_error():
            yield
    finally:
        configure()


def configure() -> None:
    """Ray Data as qaray uses it: quiet, in order, and patient with a cluster that grows slowly."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.use_ray_tqdm = False
    context.print_on_execution_start = False
    # Nothing may end a run that waits for a machine: half an hour without progress is usual on a busy cloud.
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1
    context.wait_for_min_actors_s = -1
    # A pool grows as soon as its actors work on as many blocks as they can. By default they would have to hold 1.75
    # times as many, and engines hold one more.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.raise_original_map_exception = True  # a wrapped one loses its cause on its way to the driver
    # Less work than actors is no matter for concern: pools have the size that was asked for.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    for name in ("ray.data", "ray", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if debugging() else logging.ERROR)


def in_order(
    task: Callable[..., Any],
    shared: Any,
    arguments: Iterable[tuple[Any, ...]],
    ahead: int,
    cpus: float = LIGHT,
) -> Iterator[Any]:
    """The results of ``task(shared, *arguments)`` in the order of the arguments, at most ``ahead`` tasks at work or
    waiting, of so many CPUs each: no more than the cluster has now, so that none is asked for more machines.
    ``shared`` is stored once for all of them. Without Ray one after another, here."""
    import ray

    if not ray.is_initialized():
        yield from (task(shared, *each) for each in arguments)
        return
    remote, shared = ray.remote(task).options(num_cpus=cpus), ray.put(shared)
    ahead = min(ahead, max(1, int(ray.cluster_resources().get("CPU", 0) / cpus)))
    flying: deque[Any] = deque()
    for each in arguments:
        flying.append(remote.remote(shared, *each))
        if len(flying) >= ahead:
            yield ray.get(flying.popleft())
    while flying:
        yield ray.get(flying.popleft())


def actor_gpus(wanted: float | None) -> float:
    """GPUs that an actor takes: what is wanted, else one if the cluster has any."""
    return (1.0 if cluster_gpus() else 0.0) if wanted is None else wanted


def cluster_gpus() -> float:
    """GPUs of the connected cluster, in all."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))
