"""One driver per run: the lease, a file with a heartbeat.

The claim of an epoch (qaray.run.epochs) decides who the driver is; the lease only tells others that it is alive. A
holder is judged by the process table only where it is the same one: host, boot and PID namespace. Elsewhere, and if its
process is stopped, it is alive if its heartbeat changes while this process watches: no clock is compared with another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs

from qaray.run.directory import Run
from qaray.run.epochs import Epoch, latest_claim
from qaray.run.errors import RunRefused, Superseded
from qaray.run.storage import Location

HEARTBEAT = 5.0  # seconds between heartbeats
STALE = 30.0  # seconds of this machine's monotonic clock without a heartbeat until a driver counts as dead
LOOKS = 10  # at the lease, in the time of a heartbeat
LONGEST = 1 << 16  # bytes that are read of what may be a lease
LENGTH = 1024  # bytes of a lease, which is padded with blanks

_HELD: set[str] = set()  # ids of the leases that this process holds


def _ignore(_: str) -> None:
    return None


@contextlib.contextmanager
def lease(
    run: Run, notify: Callable[[str], None] = _ignore, relist: Callable[[str], None] | None = None
) -> Iterator[Lease]:
    """Holds the run's lease inside the block. Raises RunRefused if another driver is alive.

    ``relist``: for a repair, told if the list of the files that count is damaged and every file is listed instead.
    """
    held = Lease(run)
    held.acquire(notify, relist)
    try:
        yield held
    except Exception:
        held.check()  # whatever failed, it may be because another driver has taken over
        raise
    finally:
        held.release()


class Lease:
    """The lease of a run. ``run`` belongs to its epoch once it is acquired."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.file = run.root / "lease.json"
        self.id = uuid.uuid4().hex
        self.lost = ""  # why, once it is lost
        self._beats = 0
        self._lock = threading.Lock()  # of the file: no look between the bytes of a heartbeat
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="qaray-lease", daemon=True)

    def acquire(self, notify: Callable[[str], None] = _ignore, relist: Callable[[str], None] | None = None) -> None:
        """Waits, up to STALE seconds, for a sign of life of the last holder; then claims the next epoch.

        Raises RunRefused if the holder is alive, or if another driver claims the epoch at the same moment.
        """
        self.refuse_another(notify)
        epoch = Epoch.claim(self.run.root, self._holder())
        self.run = replace(self.run, epoch=epoch)
        _HELD.add(self.id)
        try:
            self._write()
            self._thread.start()
            self.run = replace(self.run, epoch=epoch.adopt(relist))
            self.check()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        _HELD.discard(self.id)
        if _parsed(_content(self.file)).get("id") == self.id:
            self.file.remove()

    def check(self) -> None:
        """Raises Superseded if another driver has taken over the run, or the lease was removed."""
        self._look()
        if self.lost:
            raise Superseded(self.lost)

    def refuse_another(self, notify: Callable[[str], None] = _ignore) -> None:
        """Raises RunRefused if another driver is alive."""
        if driver := self.live_driver(STALE, notify):
            raise RunRefused(f"another driver is working on {self.run.root} ({driver}): wait for it to end or stop it")

    def live_driver(self, patience: float, notify: Callable[[str], None] = _ignore) -> str:
        """The live driver of the run in words, '' if there is none or if it is this one.

        Watches the lease for up to ``patience`` seconds where the process table does not tell.
        """
        content = _content(self.file)
        holder = _parsed(content)
        if content is None or holder.get("id") == self.id:
            return ""
        who = f"process {holder.get('pid')} on host {holder.get('host')}" if holder else "an unreadable lease.json"
        if (running := is_running(holder)) is not None:
            return f"{who}, running" if running else ""
        if patience > HEARTBEAT:
            notify(f"looking for a sign of life of {who}, for up to {patience:.0f} s")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(1.0, HEARTBEAT / LOOKS))
            seen = _content(self.file)
            if seen is None or is_running(_parsed(seen)) is False:
                return ""
            if seen != content:
                return f"{who}, whose heartbeat goes on"
        return ""

    def _holder(self) -> dict[str, Any]:
        process = psutil.Process()
        return {"id": self.id, **process_table(), "pid": process.pid, "started": process.create_time()}

    def _write(self) -> None:
        self._beats += 1
        number = self.run.epoch.number if self.run.epoch else 0
        lease = {**self._holder(), "epoch": number, "beat": self._beats, "heartbeat": time.time()}
        content = json.dumps(lease, indent=2).encode().ljust(LENGTH) + b"\n"
        if self._beats == 1 or not self.file.is_local:
            self.file.write_bytes(content)
            return
        try:
            handle = os.open(self.file.path, os.O_WRONLY)  # it is not created again if it was removed meanwhile
        except FileNotFoundError:
            return
        try:
            os.pwrite(handle, content, 0)
        finally:
            os.close(handle)

    def _look(self) -> None:
        """Sets ``lost`` if the epoch was superseded, or the lease is not this one's any more."""
        epoch = self.run.epoch
        with self._lock:
            if self.lost or epoch is None:
                return
            content = _content(self.file)
            holder = _parsed(content)
            if latest_claim(self.run.root) > epoch.number:
                self.lost = f"another driver took over {self.run.root}; this one stops"
            elif content is None:
                self.lost = f"{self.file} was removed: this driver stops; rerun the command to resume"
            elif holder.get("id") != self.id and not _is_earlier(holder, epoch.number):
                self.lost = f"{self.file} was replaced: this driver stops; rerun the command to resume"

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # storage is unavailable for a moment: the next beat retries
                self._look()
                if self.lost:
                    return
                with self._lock:
                    self._write()


def process_table() -> dict[str, str]:
    """Identifies the table in which this process has its id: host, boot and PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, namespace = str(int(psutil.boot_time())), ""
    return {"host": socket.gethostname(), "boot": boot, "pid_namespace": namespace}


def is_running(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process is there; None if its process table is another, or if it is stopped."""
    if holder.get("id") in _HELD:
        return True
    here = process_table()
    if any(holder.get(name) != here[name] for name in here):
        return None
    try:
        process = psutil.Process(int(holder["pid"]))
        if abs(process.create_time() - float(holder["started"])) >= 1:
            return False
        status = process.status()
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return False
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) or process.pid == os.getpid():
        return False
    return None if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else True


def _is_earlier(holder: dict[str, Any], epoch: int) -> bool:
    """Whether a lease is the late heartbeat of a driver that this epoch has superseded."""
    number = holder.get("epoch")
    return isinstance(number, int) and number < epoch and bool(holder.get("id"))


def _content(file: Location) -> bytes | None:
    """What the lease holds, None if there is none."""
    if file.info().type == pafs.FileType.Unknown:
        return b""  # a pipe, which would not answer
    try:
        with file.fs.open_input_stream(file.path, compression=None) as stream:
            return bytes(stream.read(LONGEST))
    except FileNotFoundError:
        return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    """The lease's holder; {} if it cannot be read."""
    try:
        holder = json.loads(content or b"")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
