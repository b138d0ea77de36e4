"""Ray for a run: connects to a cluster or starts a local one, and hides Ray's log output from the user."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qaray.config import Cluster, ConfigError
from qaray.run.addresses import check_address
from qaray.run.cluster_watch import watch_cluster
from qaray.run.errors import RunError
from qaray.run.waiting import waiting

# Logical CPUs per task of the light stages (reading, prompting, writing). A fraction, so that they do not take the CPUs
# of the engine's actors, and still run on a cluster with two CPUs.
LIGHT = 0.25
DEBUG = "QARAY_DEBUG"  # environment variable
CONNECTIONS = 3  # attempts to connect to a cluster
CONNECT_LIMIT = 150.0  # seconds of an attempt: Ray waits without limit for a cluster of which a part is lost
START_LIMIT = 600.0  # seconds in which late starts of a local cluster are repeated
TEMPORARY_BYTES = 16 << 20  # for the sockets and logs of a local cluster
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


def debugging() -> bool:
    """Whether the logs of Ray, vLLM and the workers are shown: QARAY_DEBUG, which --debug True sets."""
    return os.environ.get(DEBUG, "").lower() not in ("", "0", "false")


def connect(cluster: Cluster = Cluster()) -> None:  # noqa: B008  frozen
    """Connects to ``cluster.address``, else to RAY_ADDRESS or the job's cluster, else starts a local cluster.

    Keeps the connection of a process that is already connected. A local cluster gets ``cluster.local_cpus`` logical
    CPUs, by default at least four, which the light stages share. Raises RunError if the cluster does not respond, or
    does not start in time, ConfigError if the address is none, or the cluster demands a token.
    """
    # Light stages share CPUs, so Ray warns that there are more workers than CPUs, which is harmless. Ray reads this
    # variable on import.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    import ray

    if ray.is_initialized():
        configure()
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if debugging():
        options |= {"logging_level": logging.INFO, "log_to_driver": True}
        if JOB not in os.environ:  # a job has its own runtime environment, which is not merged with this one
            options["runtime_env"] = {"env_vars": {DEBUG: "1"}}
    else:
        # Ray's core prints internal errors to the driver's terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    named = cluster.address or os.environ.get("RAY_ADDRESS")
    if named and named != "local":
        check_address(named, "--address" if cluster.address else "RAY_ADDRESS")
        options["address"] = cluster.address
    else:
        check_temporary_folder(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options |= {"address": "local", "num_cpus": cluster.local_cpus or max(4, cores), "include_dashboard": False}
    try:
        _init(options, f"the Ray cluster at {named}" if options["address"] != "local" else "a local Ray cluster")
    except Exception as error:  # Ray raises many types here, and a bare Exception if a node is late
        problem = f"the Ray cluster at {named} cannot be joined" if named else "no local Ray cluster could be started"
        if _lacks_token(error):
            raise ConfigError(
                f"{problem}: it demands a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
        message = " ".join((str(error) or type(error).__name__).split())[:300]
        raise RunError(f"{problem}: {message} ({DEBUG}=1 shows Ray's log)") from error
    configure()
    watch_cluster()


def check_temporary_folder(folder: str) -> None:
    """Raises RunError if a local cluster cannot write its files to ``folder``: Ray would wait for one in vain."""
    try:
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"temporary folder {folder}: {error.strerror}: set RAY_TMPDIR to another folder") from None
    if free < TEMPORARY_BYTES:
        raise RunError(
            f"temporary folder {folder}: {free >> 20} MiB are free, a local Ray cluster needs {TEMPORARY_BYTES >> 20}: "
            "free some, or set RAY_TMPDIR to another folder"
        )


def _init(options: dict[str, Any], cluster: str) -> None:
    """Calls ray.init, and again if it is late: CONNECTIONS times in all, or for START_LIMIT seconds to start a cluster.

    A busy machine may exceed Ray's limits: 20 s to connect, and 15 s for the agent of a local node, without which the
    node ends. Ray raises a bare Exception then.
    """
    import ray

    begun, local = time.monotonic(), options["address"] == "local"
    for attempt in itertools.count(1):
        try:
            # The core reports on standard error that it uses RAY_BACKEND_LOG_LEVEL.
            with waiting(cluster, CONNECT_LIMIT), no_standard_error():
                ray.init(**options)
        except Exception as error:
            late = isinstance(error, ConnectionError) or type(error) is Exception
            last = time.monotonic() - begun > START_LIMIT if local else attempt == CONNECTIONS
            if not late or last or _lacks_token(error):
                raise
            ray.shutdown()  # cleans up after a late start
        else:
            return


def _lacks_token(error: Exception) -> bool:
    """Whether a cluster with token authentication has refused this process. Ray's cause is the text of a traceback."""
    return "AuthenticationError" in f"{error}{error.__cause__}"


@contextlib.contextmanager
def no_standard_error() -> Iterator[None]:
    """Discards output to file descriptor 2 inside the block, unless debugging. Exceptions are raised as usual."""
    if debugging():
        yield
        return
    sys.stderr.flush()
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


@contextlib.contextmanager
def quiet_llm() -> Iterator[None]:
    """Silences the setup of ray.data.llm and vLLM, which log and reset Ray's own logging."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if debugging() else "ERROR")
    try:
        with no_standard_error():
            yield
    finally:
        configure()


def configure() -> None:
    """Configures Ray Data: no progress output, and no timeouts while a cluster scales up."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.use_ray_tqdm = False
    context.print_on_execution_start = False
    # No timeouts: half an hour of waiting for a machine is common on a busy cloud.
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1
    context.wait_for_min_actors_s = -1
    # Scale up an actor pool as soon as its actors work on as many blocks as they can. The default requires 1.75 times
    # as many, but engines hold only one more.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.raise_original_map_exception = True  # a wrapped exception loses its cause on the way to the driver
    # Fewer blocks than actors is harmless: pools have the requested size.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    for name in ("ray.data", "ray", "ray.train", "ray.tune"):
        # Ray Data logs a task's error before it raises it.
        logging.getLogger(name).setLevel(logging.INFO if debugging() else logging.CRITICAL)


def in_order(
    task: Callable[..., Any],
    shared: Any,
    arguments: Iterable[tuple[Any, ...]],
    ahead: int,
    cpus: float = LIGHT,
) -> Iterator[Any]:
    """Yields the results of ``task(shared, *arguments)`` in the order of ``arguments``.

    At most ``ahead`` tasks, of ``cpus`` CPUs each, run or wait at a time, and no more than the current cluster has CPUs
    for, so that the tasks do not trigger autoscaling. ``shared`` is put into the object store once. Without Ray, the
    tasks run one after another in this process.
    """
    import ray

    if not ray.is_initialized():
        yield from (task(shared, *each) for each in arguments)
        return
    remote, shared = ray.remote(task).options(num_cpus=cpus), ray.put(shared)
    ahead = min(ahead, max(1, int(ray.cluster_resources().get("CPU", 0) / cpus)))
    pending: deque[Any] = deque()
    for each in arguments:
        pending.append(remote.remote(shared, *each))
        if len(pending) >= ahead:
            yield ray.get(pending.popleft())
    while pending:
        yield ray.get(pending.popleft())


def actor_gpus(wanted: float | None) -> float:
    """GPUs per actor: ``wanted``, else 1 if the cluster has a GPU and 0 if not."""
    return (1.0 if cluster_gpus() else 0.0) if wanted is None else wanted


def cluster_gpus() -> float:
    """Total GPUs of the connected cluster."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))
