"""Runs of the command line as a user makes them: in processes of their own, on real local Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from tests.conftest import ROOT, read_jsonl


def command(*args, **env) -> tuple[list[str], dict[str, str]]:
    return (
        [sys.executable, "-m", "qaray.cli", *map(str, args)],
        {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env},
    )


def qaray(*args, timeout=300, **env) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    line, environment = command(*args, **env)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def start(*args, **env) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own, which a test can kill."""
    line, environment = command(*args, **env)
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
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
