"""One driver per run: a lease with a heartbeat."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil

from qaray.run.directory import Run, RunError, RunRefused

HEARTBEAT = 5.0  # seconds between heartbeats
STALE = 30.0  # seconds without a heartbeat until a driver on another machine counts as dead


@contextlib.contextmanager
def lease(run: Run) -> Iterator[Lease]:
    """Holds the run's lease inside the block. Raises RunRefused if another driver is alive."""
    held = Lease(run)
    held.acquire()
    try:
        yield held
    finally:
        held.release()


class Lease:
    """A file with a heartbeat that identifies the driver of the run."""

    def __init__(self, run: Run) -> None:
        self.file = run.root / "lease.json"
        self.id = uuid.uuid4().hex
        self.lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="qaray-lease", daemon=True)

    def acquire(self) -> None:
        self.refuse_another()
        self._write()
        time.sleep(0.25)  # another driver may have written at the same time: the last write wins
        if (self.holder() or {}).get("id") != self.id:
            raise RunRefused(f"another driver took {self.file.path.rsplit('/', 1)[0]} at the same moment")
        self._thread.start()

    def release(self) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self.lost.is_set():
            self.file.remove()

    def check(self) -> None:
        """Raises RunError if another driver has taken over the run."""
        if self.lost.is_set():
            raise RunError(f"another driver took over {self.file.path.rsplit('/', 1)[0]}; this one stops")

    def refuse_another(self) -> None:
        """Raises RunRefused if another driver is alive."""
        if driver := self.live_driver():
            raise RunRefused(
                f"another driver is working on {self.file.path.rsplit('/', 1)[0]} ({driver}): wait for it to end or "
                "stop it"
            )

    def live_driver(self) -> str:
        """The live driver of the run in words, '' if there is none or if it is this process."""
        holder = self.holder()
        reason = sign_of_life(holder) if holder else ""
        return f"process {holder.get('pid')} on host {holder.get('host')}, {reason}" if holder and reason else ""

    def holder(self) -> dict[str, Any] | None:
        """Content of the lease, None if there is none."""
        try:
            return self.file.read_json()
        except ValueError:
            return None  # half-written by a driver that died

    def _write(self) -> None:
        process = psutil.Process()
        self.file.write_json(
            {
                "id": self.id,
                "host": socket.gethostname(),
                "pid": process.pid,
                "started": process.create_time(),
                "heartbeat": time.time(),
            }
        )

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # storage is unavailable for a moment: the next beat retries
                holder = self.holder()
                if holder and holder.get("id") != self.id:
                    self.lost.set()
                    return
                self._write()


def sign_of_life(holder: dict[str, Any]) -> str:
    """Why the holder counts as another live driver; '' if it is dead or this process."""
    if holder.get("host") == socket.gethostname():
        try:
            process = psutil.Process(int(holder["pid"]))
            same = abs(process.create_time() - float(holder["started"])) < 1
            gone = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.Error, KeyError, ValueError, TypeError):
            return ""
        return "running" if same and not gone and process.pid != os.getpid() else ""
    age = time.time() - float(holder.get("heartbeat", 0))
    return f"last heartbeat {age:.0f} s ago" if age < STALE else ""
