"""The run directory: what identifies a run, who drives it, what is done already.

OUT/run.json      written first         OUT/lease.json   while a driver lives
OUT/papers/       shards of papers      OUT/stop         while a stop is asked for
OUT/generations/  shards of answers     OUT/manifest.json  written last
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from qaray.storage import Location

HEARTBEAT = 5.0  # seconds between two signs of life
STALE = 30.0  # seconds without one after which a driver on another machine counts as dead
SHARD = "part-{:06d}"
THE_RUN = "the run itself"  # what the pairs of an evaluation are of, unless they were taken in from a file


class RunError(RuntimeError):
    """The run directory does not allow what was asked. One line for the user."""


class RunRefused(RunError):
    """The run belongs to another driver, or to other settings. Nothing was touched."""


@dataclass(frozen=True)
class Run:
    """A run directory. Picklable."""

    root: Location

    @classmethod
    def at(cls, output_dir: str) -> Run:
        return cls(Location.of(output_dir))

    @property
    def papers(self) -> Location:
        return self.root / "papers"

    @property
    def rejected_papers(self) -> Location:
        """Rejected records of the ingest. The underscore keeps Parquet readers of ``papers`` out of it."""
        return self.papers / "_rejected"

    @property
    def sources(self) -> Location:
        """What was read: one entry an input file that was read to its end."""
        return self.papers / "_sources.json"

    @property
    def generations(self) -> Location:
        return self.root / "generations"

    @property
    def manifest(self) -> Location:
        return self.root / "manifest.json"

    @property
    def identity(self) -> Location:
        return self.root / "run.json"

    @property
    def engine(self) -> str | None:
        """The engine that run.json names, None where it names none yet."""
        stored = self._stored_identity() or {}
        parts = (stored, stored.get("similarity") or {}, stored.get("racar") or {})
        return next((part["engine"] for part in parts if "engine" in part), None)

    @property
    def evaluation(self) -> Run:
        """The evaluation of this run's pairs: a run directory of its own, within."""
        return Run(self.root / "evaluation")

    def measured(self) -> dict[str, Any] | None:
        """The manifest of its evaluation; None without one, or if that is of pairs which were made elsewhere."""
        manifest = self.evaluation.manifest.read_json()
        return manifest if manifest and manifest["pairs_of"] == THE_RUN else None

    @property
    def summary(self) -> Location:
        return self.root / "summary.json"

    @property
    def training_log(self) -> Location:
        """Of a fine-tuning, written as it goes."""
        return self.root / "training.json"

    @property
    def stop_flag(self) -> Location:
        return self.root / "stop"

    def shard_names(self) -> list[str]:
        """Names of the paper shards, in order; generation and score shards go by them."""
        return [shard.name.removesuffix(".parquet") for shard in self.paper_shards()]

    def rejected_records(self) -> Iterator[dict[str, Any]]:
        """Rejected rows of the ingest, a shard in memory at a time."""
        for shard in self.rejected_papers.files(".parquet"):
            yield from shard.read_table().to_pylist()

    def paper_shards(self) -> list[Location]:
        return self.papers.files(".parquet")

    def generation_files(self) -> dict[str, list[str]]:
        """Paths of generation shards by the paper shard that they belong to."""
        files: dict[str, list[str]] = defaultdict(list)
        for file in self.generations.files(".parquet"):
            files[file.name.split(".", 1)[0]].append(file.path)
        return dict(files)

    def generation_file(self, shard: str, keys: list[tuple[str, int, int]]) -> Location:
        """Where the answers of these (doi, window, attempt) go: the same keys give the same file, so that a task that
        runs twice writes it twice."""
        digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]
        return self.generations / f"{shard}.{digest}.parquet"

    def size(self) -> int:
        """Bytes of the run's shards and exports."""
        files = [*self.papers.infos(recursive=True), *self.generations.infos(), *self.root.infos()]
        return sum(info.size or 0 for info in files)

    def identify(self, identity: dict[str, Any]) -> None:
        """Writes run.json, or checks that it says the same. Raises RunError with the differences."""
        stored = self._stored_identity()
        record = {**identity, "hash": identity_hash(identity)}
        if stored is None:
            self.root.make_folder()
            self.identity.write_json(record)
            return
        if stored.get("hash") == record["hash"]:
            return
        changes = differences({**stored, "hash": None}, {**record, "hash": None})
        raise RunRefused(
            f"{self.root} holds another run ({changes}): choose another --output_dir or the run's own settings"
        )

    def identify_parts(self, parts: dict[str, dict[str, Any]]) -> None:
        """The same where a start may name some parts of the identity only: those of run.json must say the same, new
        ones are added."""
        stored = self._stored_identity() or {}
        stored.pop("hash", None)
        for part, wanted in parts.items():
            known = stored.get(part, wanted)
            changes = differences(known, wanted)
            if changes:
                raise RunRefused(
                    f"{self.root} holds another {part} ({changes}): remove that folder, or choose the settings that it "
                    "was made with"
                )
        merged = {**stored, **parts}
        if merged != stored:
            self.root.make_folder()
            self.identity.write_json({**merged, "hash": identity_hash(merged)})

    def finished(self) -> dict[str, Any]:
        """The manifest. Raises RunRefused if there is none."""
        manifest = self.manifest.read_json()
        if manifest is None:
            raise RunRefused(
                f"{self.root} holds no finished run (manifest.json is missing): run the command that began it again"
            )
        return manifest

    def _stored_identity(self) -> dict[str, Any] | None:
        try:
            return self.identity.read_json()
        except ValueError as error:
            raise RunError(f"{error}: remove it if the run is to start anew") from None

    def clean(self) -> None:
        """Removes what a killed writer left behind. Only the holder of the lease may."""
        report = self.root / "report"
        for folder in (self.root, self.papers, self.rejected_papers, self.generations, report, report / "papers"):
            folder.remove_temporary()
        for scores in self.root.folders(".parquet"):
            scores.remove_temporary(recursive=True)


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What two identities say differently, in words; '' if nothing."""
    names = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    return "; ".join(f"{k}: {stored.get(k)!r} in the run, {wanted.get(k)!r} asked for" for k in names)


def logged_steps(log: dict[str, Any]) -> list[dict[str, Any]]:
    """The optimizer steps that a training log holds."""
    return [entry for entry in log["log"] if "loss" in entry]


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Stopped(Exception):
    """The run was told to stop. What is done is durable; the same command goes on."""


class StopSignal:
    """Whether the run is to end after the work in hand. Looked up in the run directory, at most every two seconds."""

    def __init__(self, flag: Location) -> None:
        self.flag, self._seen, self._next = flag, False, 0.0

    def __reduce__(self) -> tuple[type[StopSignal], tuple[Location]]:
        return StopSignal, (self.flag,)  # another machine's clock is another one

    def __call__(self) -> bool:
        if not self._seen and time.monotonic() >= self._next:
            self._seen, self._next = self.flag.exists(), time.monotonic() + 2
        return self._seen


@contextlib.contextmanager
def lease(run: Run) -> Iterator[Lease]:
    """Holds the run for this process. Raises RunError while another driver lives."""
    held = Lease(run)
    held.acquire()
    try:
        yield held
    finally:
        held.release()


class Lease:
    """A file with a heartbeat that says who drives the run."""

    def __init__(self, run: Run) -> None:
        self.file = run.root / "lease.json"
        self.id = uuid.uuid4().hex
        self.lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="qaray-lease", daemon=True)

    def acquire(self) -> None:
        self.refuse_another()
        self._write()
        time.sleep(0.25)  # a driver that came at the same moment wrote too: the last one has the run
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
        """Raises RunError if another driver has taken the run."""
        if self.lost.is_set():
            raise RunError(f"another driver took over {self.file.path.rsplit('/', 1)[0]}; this one stops")

    def refuse_another(self) -> None:
        """Raises RunRefused while another driver lives."""
        holder = self.holder()
        if holder and (reason := sign_of_life(holder)):
            raise RunRefused(
                f"another driver works on {self.file.path.rsplit('/', 1)[0]} (host {holder.get('host')}, "
                f"process {holder.get('pid')}, {reason}): wait for it or stop it"
            )

    def holder(self) -> dict[str, Any] | None:
        """What the lease says of the run's driver, None without one."""
        try:
            return self.file.read_json()
        except ValueError:
            return None  # a half-written lease of a writer that is gone

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
            with contextlib.suppress(OSError):  # a store that is away for a moment: the next beat comes
                holder = self.holder()
                if holder and holder.get("id") != self.id:
                    self.lost.set()
                    return
                self._write()


def sign_of_life(holder: dict[str, Any]) -> str:
    """Why the holder counts as alive, '' if it is dead."""
    if holder.get("host") == socket.gethostname():
        try:
            process = psutil.Process(int(holder["pid"]))
            same = abs(process.create_time() - float(holder["started"])) < 1
            gone = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.Error, KeyError, ValueError, TypeError):
            return ""
        return "alive" if same and not gone and process.pid != os.getpid() else ""
    age = time.time() - float(holder.get("heartbeat", 0))
    return f"last sign of life {age:.0f} s ago" if age < STALE else ""


@contextlib.contextmanager
def _handled(handle: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGINT call ``handle`` in the block, but not in a thread; yields what ends that earlier."""
    signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous = {each: signal.signal(each, lambda number, frame: handle()) for each in signals}

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def end_on_signal() -> Iterator[None]:
    """SIGTERM and SIGINT raise Stopped in the block, where no work is in hand yet.

    What a handler raises while Ray waits is lost, unless it is a KeyboardInterrupt.
    """

    def handle() -> None:
        raise KeyboardInterrupt

    with _handled(handle):
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped("stopped before there was work in hand: run the same command to go on") from None


@contextlib.contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop: what is in hand is finished and written. A second one ends at once."""
    asking: list[threading.Thread] = []

    def handle() -> None:
        restore()
        asking.append(threading.Thread(target=ask, name="qaray-stop"))
        asking[-1].start()  # a handler must not wait for a store

    def ask() -> None:
        run.stop_flag.write_json({"asked": utc_now()})

    run.stop_flag.remove()
    try:
        with _handled(handle) as restore:
            yield
    finally:
        for thread in asking:
            thread.join()
        run.stop_flag.remove()  # it was for this start, which has heeded it or was done before
