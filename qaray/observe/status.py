"""`qaray status OUT`: the progress of a run, read from its files without the cluster or the driver."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import pyarrow.fs as pafs

from qaray.config import StatusConfig
from qaray.evaluate.tables import COVERAGE, GROUNDING, QUESTIONS, RACAR, SIMILARITY
from qaray.observe.repair import repair
from qaray.observe.terminal import reader_gone
from qaray.run.directory import Run, logged_steps
from qaray.run.durations import time_left
from qaray.run.epochs import Epoch
from qaray.run.errors import Damaged, RunRefused
from qaray.run.inventory import Inventory
from qaray.run.lease import HEARTBEAT, Lease
from qaray.run.storage import Location, in_threads
from qaray.schema import ParseStatus

LOOK = 1.5 * HEARTBEAT  # seconds to watch the lease of a driver elsewhere
RECENT = 600.0  # seconds; files written within them determine the rate
TABLES = (COVERAGE, QUESTIONS, SIMILARITY, RACAR, GROUNDING)


@dataclass
class StageStatus:
    """Status of one stage of a run."""

    name: str
    state: str  # working, stopping, interrupted, damaged, finished
    done: int = 0
    total: int = 0
    unit: str = "papers"
    rejected: int = 0
    per_hour: float | None = None  # units per hour, recently
    driver: str = ""  # host, process, last heartbeat
    more: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # of a damaged run: file, what is wrong, cure

    @property
    def lines(self) -> list[str]:
        """The status in one line, and a line for each problem."""
        left = ""
        if self.state == "working" and self.per_hour:
            left = time_left(3600 * self.done / self.per_hour, self.done, self.total - self.done)
        rate = f", {self.per_hour:,.0f} per hour" if self.per_hour and self.state == "working" else ""
        rejected = f", {self.rejected:,} rejected" if self.rejected else ""
        more = "".join(f", {name} {value}" for name, value in self.more.items())
        who = f" ({self.driver})" if self.driver else ""
        progress = f"{self.done:,} of {self.total:,} {self.unit}{rejected}{more}{rate}{left}"
        return [f"{self.name}: {self.state}{who}, {progress}", *(f"  {problem}" for problem in self.problems)]


def show(config: StatusConfig) -> int:
    """Prints the status; with ``watch``, repeatedly while a stage is running; with ``repair``, mends it before.

    Returns 0.

    Raises RunRefused if there is no run.
    """
    if config.repair:
        run = Run.at(config.output_dir)
        _refuse_no_run(run)
        faults = repair(run, lambda line: print(line, file=sys.stderr, flush=True))
        print(f"{faults} faults mended" if faults else "no fault found", flush=True)
    while True:
        stages = status(Run.at(config.output_dir))
        if config.json_lines:
            print(json.dumps({stage.name: asdict(stage) for stage in stages}), flush=True)
        else:
            print("\n".join(line for stage in stages for line in stage.lines), flush=True)
        if config.watch is None or reader_gone() or not any(stage.state in ("working", "stopping") for stage in stages):
            return 0
        time.sleep(config.watch)


def status(run: Run) -> list[StageStatus]:
    """The stages of a run that have begun. Raises RunRefused if there is no run."""
    _refuse_no_run(run)
    identity, run = run.stored_identity(), run.pinned()
    stages = []
    if identity is not None:
        stages.append(_training(run) if "training" in identity else _generation(run))
    if run.evaluation.stored_identity() is not None:
        stages.append(_evaluation(run))
    return stages


def _refuse_no_run(run: Run) -> None:
    if run.stored_identity() is None and run.evaluation.stored_identity() is None:
        raise RunRefused(f"{run.root} is not a run directory (run.json is missing): pass the --output_dir of a run")


def _state(run: Run) -> tuple[str, str]:
    """(state, description of the driver) of a run directory."""
    if driver := Lease(run).live_driver(LOOK):
        return ("stopping" if run.stop_flag.exists() else "working"), driver
    finished = run.manifest.exists() and run.read_manifest() is not None
    return ("finished" if finished else "interrupted"), ""


def _generation(run: Run) -> StageStatus:
    state, driver = _state(run)
    answered = failed = recent = 0
    now = oldest = time.time()
    again: list[str] = []  # damaged files of answers

    def counts(files: list[pafs.FileInfo]) -> tuple[int, int, int, float]:
        """Of one shard: papers answered, without pairs, and recently answered; time of the oldest recent file."""
        dois: set[str] = set()
        paired: set[str] = set()
        fresh: set[str] = set()
        first = now
        for info in files:
            try:
                rows = _rows(run.root.fs, info.path, ["doi", "status"])
            except Damaged as damage:
                again.append(f"{damage}: the next start makes its answers again")
                continue
            dois.update(row["doi"] for row in rows)
            paired.update(row["doi"] for row in rows if row["status"] != ParseStatus.MALFORMED)
            written = info.mtime.timestamp() if info.mtime else 0.0
            if written >= now - RECENT:
                first = min(first, written)
                fresh.update(row["doi"] for row in rows)
        return len(dois), len(dois - paired), len(fresh), first

    for each in in_threads(counts, _by_shard(run.view, run.generations)):
        answered, failed, recent = answered + each[0], failed + each[1], recent + each[2]
        oldest = min(oldest, each[3])
    papers, records, problems = _ingested(run, working=bool(driver))
    if problems:
        state = "damaged"
    elif state == "finished" and answered < papers:
        state = "interrupted"
    problems += again
    seconds = time.time() - oldest
    rate = 3600 * recent / seconds if recent and seconds > 1 else None
    rejected = records + failed
    return StageStatus(
        "generate", state, answered, papers, rejected=rejected, per_hour=rate, driver=driver, problems=problems
    )


def _ingested(run: Run, working: bool) -> tuple[int, int, list[str]]:
    """(papers, rejected records, problems): of a damaged ingest what was written, as its inventory has it."""
    inventory = Inventory.of(run)
    problems = [] if working else [str(problem) for problem in inventory.problems(run)]
    if not problems:
        shards = run.paper_shards(), run.rejected_shards()
        papers, records = (sum(in_threads(Location.count_rows, each)) for each in shards)
        return papers, records, problems
    rows = {name: facts["rows"] for name, facts in inventory.shards.items()}
    papers = sum(number for name, number in rows.items() if "/" not in name)
    return papers, sum(number for name, number in rows.items() if name.startswith("_rejected/")), problems


def _evaluation(run: Run) -> StageStatus:
    own = run.evaluation.pinned()
    state, driver = _state(own)
    shards = own.paper_shards() or run.paper_shards()  # the run's shards may include papers without pairs
    done = {}
    for table in TABLES:
        if table.folder(own).exists():
            done[table.name] = 0
            for files in _by_shard(own.view, table.folder(own)):
                done[table.name] += len(
                    {row["doi"] for info in files for row in _rows(own.root.fs, info.path, ["doi"])}
                )
    finished = own.read_manifest()
    total = finished["counts"]["papers"] if finished else sum(in_threads(Location.count_rows, shards))
    done_in_all = total if finished else min(done.values(), default=0)
    rejected = sum(in_threads(Location.count_rows, own.rejected_shards()))
    return StageStatus("evaluate", state, done_in_all, total, rejected=rejected, driver=driver, more=done)


def _training(run: Run) -> StageStatus:
    state, driver = _state(run)
    log = run.training_log.read_json() or {"step": 0, "steps": 0, "log": []}
    last: dict[str, Any] = next(reversed(logged_steps(log)), {})
    more = {"loss": round(last["loss"], 4)} if last else {}
    rate = None
    if last.get("tokens_per_second") and last.get("tokens"):
        rate = 3600 * last["tokens_per_second"] / last["tokens"]
    return StageStatus("fine-tune", state, log["step"], log["steps"], "steps", per_hour=rate, driver=driver, more=more)


def _rows(fs: pafs.FileSystem, path: str, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of a file; none if the driver has merged it into another since the listing."""
    try:
        return list(Location(fs, path).read_table(columns).to_pylist())
    except FileNotFoundError:
        return []


def _by_shard(view: Epoch, folder: Location) -> Iterator[list[pafs.FileInfo]]:
    """Files that count, grouped by paper shard, so that the ids of the whole corpus need not be in memory at once."""

    def shard(info: pafs.FileInfo) -> str:
        return str(info.path[len(folder.path) :]).lstrip("/").split("/")[0].partition(".")[0]

    infos = [info for info in folder.infos(".parquet", recursive=True) if view.counts(Location(folder.fs, info.path))]
    for _, files in groupby(infos, shard):
        yield list(files)
