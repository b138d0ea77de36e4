"""qaray's commands for tests: in the test's process, or, where the process is the subject, in one of their own.

All join the session's cluster, which the workers of pytest-xdist share; ``local=True`` gives a process its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as pads
import pytest
from filelock import FileLock

from qaray import cli
from tests.conftest import python_path, read_jsonl

STARTED: list[subprocess.Popen[str]] = []  # by the running test
CLUSTER: dict[str, str] = {}  # environment that leads to the session's cluster
PATIENCE = int(os.environ.get("QARAY_TEST_PATIENCE", "600"))  # seconds that a state is waited for


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def qaray(*args: Any) -> Done:
    """Runs a command in this process, on the session's cluster."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(arg) for arg in args])
    return Done(code, out.getvalue(), err.getvalue())


def command(*args: Any, local: bool = False) -> tuple[list[str], dict[str, str]]:
    """A command line and its environment."""
    joined = {} if local else CLUSTER
    environment = {name: value for name, value in os.environ.items() if not local or name != "RAY_ADDRESS"}
    environment |= {**joined, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
    return [sys.executable, "-m", "qaray.cli", *map(str, args)], environment


def shell(*args: Any, local: bool = False, timeout: int = 2 * PATIENCE) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, to its end."""
    line, environment = command(*args, local=local)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def start(*args: Any, local: bool = False, faults: dict[str, Any] | None = None, **more: str) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own, which a test can kill; ``faults``: of tests/chaos/faults.py;
    ``more``: of its environment."""
    line, environment = command(*args, local=local)
    environment |= more
    if faults is not None:
        line[1:3] = ["-m", "tests.chaos.driver"]
        environment["QARAY_FAULTS"] = json.dumps(faults, default=str)
    process = subprocess.Popen(
        line,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def end_started() -> None:
    """Kills what a test started and left."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a started command and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until ``condition()`` is true; fails at once if ``process`` ends before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            if condition():
                return
            pytest.fail(f"the process ended with {process.returncode}: {process.communicate()[0]}")
        if time.monotonic() > end:
            pytest.fail(f"waited {PATIENCE} s in vain")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


# The session's cluster


@contextlib.contextmanager
def shared_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A real Ray head with token authentication and a job server, as a user starts one. The first of the processes that
    share ``folder`` starts it, the last one ends it."""
    note, lock = folder / "cluster.json", FileLock(folder / "cluster.lock")
    with lock:
        known = json.loads(note.read_text()) if note.exists() else {"users": 0, **start_head()}
        note.write_text(json.dumps({**known, "users": known["users"] + 1}))
    CLUSTER.update(known["environment"], PID=str(known["pid"]))
    os.environ.update({name: CLUSTER[name] for name in ("RAY_ADDRESS", "PATH")})
    try:
        yield CLUSTER
    finally:
        import ray

        ray.shutdown()
        with lock:
            known = json.loads(note.read_text())
            if known["users"] > 1:
                note.write_text(json.dumps({**known, "users": known["users"] - 1}))
            else:
                note.unlink()
                end_tree(known["pid"])


def start_head() -> dict[str, Any]:
    """A head that ends while it starts is started again: a busy machine exceeds Ray's limits, others take its ports."""
    end = time.monotonic() + PATIENCE
    while True:
        if (head := _start_head()) is not None:
            return head
        assert time.monotonic() < end, "no Ray head could be started"


def _start_head() -> dict[str, Any] | None:
    port, dashboard, metrics = free_port(), free_port(), free_port()
    token = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = ["ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={port}", "--num-cpus=6"]
    line += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    line += [f"--metrics-export-port={metrics}"]
    for name in ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc"):
        line += [f"--{name}-port={free_port()}"]  # another cluster may hold the usual one
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    # Workers that idle between two tests are kept for the next one.
    environment |= {"RAY_num_workers_soft_limit": "16", "RAY_idle_worker_killing_time_threshold_ms": "600000"}
    head = subprocess.Popen(
        line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: head.poll() is not None or (listens(port) and listens(dashboard)))
    except BaseException:
        end_tree(head.pid)
        raise
    if head.poll() is not None:
        return None
    addresses = {"RAY_ADDRESS": f"127.0.0.1:{port}", "JOBS": f"http://127.0.0.1:{dashboard}"}
    addresses["METRICS"] = f"http://127.0.0.1:{metrics}/metrics"
    return {"pid": head.pid, "environment": {**token, **addresses, "PATH": path}}


def cluster_processes() -> list[psutil.Process]:
    """What the session's cluster has started, and no other."""
    return psutil.Process(int(CLUSTER["PID"])).children(recursive=True)


def end_tree(pid: int) -> None:
    """Ends a process and all that it has started, which may be in sessions of their own."""
    try:
        head = psutil.Process(pid)
        processes = [*head.children(recursive=True), head]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


# What a run leaves


def shards(folder: Path, least: int) -> bool:
    """Whether the folder holds at least so many shards."""
    return len(list(folder.glob("**/part*.parquet"))) >= least


def generations(out: Path) -> list[dict[str, Any]]:
    return list(pads.dataset(str(out / "generations"), format="parquet").to_table().to_pylist())


def check_complete(out: Path, dois: set[str]) -> dict[str, Any]:
    """Every doi exactly once among processed and rejected; counts as in the manifest. Returns the manifest."""
    manifest = json.loads((out / "manifest.json").read_text())
    processed = Counter(r["doi"] for r in json.loads((out / "processed_output.json").read_text()))
    rejected = Counter(r["doi"] for r in read_jsonl(out / "rejected.jsonl") if r["stage"] != "ingest")
    assert set(processed + rejected) == dois
    assert set((processed + rejected).values()) == {1}
    counts = manifest["counts"]
    assert counts["papers"] == len(dois) == counts["papers_with_pairs"] + sum(rejected.values())
    assert counts["records"] == counts["papers_with_pairs"] + counts["rejected"]
    assert not [f for f in out.rglob("*") if f.name.startswith(".tmp-")]
    assert not (out / "lease.json").exists()
    return dict(manifest)
