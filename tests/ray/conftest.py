"""Runs of the command line as a user makes them: in processes of their own, on real local Ray."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from tests.conftest import python_path, read_jsonl

CLUSTER: dict[str, str] = {}  # environment that leads to the tests' cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[dict[str, str]]:
    """A real Ray head with token authentication and a job server, as a user starts one; commands join it."""
    port, dashboard, metrics = free_port(), free_port(), free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = ["ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={port}", "--num-cpus=4"]
    line += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    line += [f"--metrics-export-port={metrics}"]
    for name in ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc"):
        line += [f"--{name}-port={free_port()}"]  # another cluster may hold the usual one
    environment = {**os.environ, **token, "PATH": path, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as head:
        try:
            wait_for(lambda: listens(port) and listens(dashboard))
            CLUSTER.update(token, RAY_ADDRESS=f"127.0.0.1:{port}", PATH=path, JOBS=f"http://127.0.0.1:{dashboard}")
            CLUSTER.update(METRICS=f"http://127.0.0.1:{metrics}/metrics")
            yield CLUSTER
        finally:
            CLUSTER.clear()
            os.killpg(head.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def command(*args, local=False) -> tuple[list[str], dict[str, str]]:
    """A command line and its environment; ``local``: with a cluster of its own."""
    joined = {} if local else CLUSTER
    environment = {**os.environ, **joined, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
    return [sys.executable, "-m", "qaray.cli", *map(str, args)], environment


def qaray(*args, timeout=300, local=False) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    line, environment = command(*args, local=local)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def start(*args, local=False, **environment: str) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own, which a test can kill; ``environment``: more of it."""
    line, usual = command(*args, local=local)
    return subprocess.Popen(
        line,
        env=usual | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=120):
    """Waits until ``condition()`` is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain")
        time.sleep(0.05)


def generations(out: Path) -> list[dict]:
    return pads.dataset(str(out / "generations"), format="parquet").to_table().to_pylist()


def check_complete(out: Path, dois: set[str]) -> dict:
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
    return manifest
