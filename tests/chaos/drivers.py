"""`python -m tests.chaos.drivers --runs 40`: two drivers on one run directory; the table goes into docs/reliability.md.

A seed decides stage, attack and moment. The first driver is held at a moment of the stage while it is attacked and a
second one starts: in the same place, in another container on this host (PID and UTS namespaces, one host name), or on
another host (host name and boot id of its own). The command is then started again until it ends well, twice at most,
and every paper must be there once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from tests.chaos.faults import VARIABLE, held, release
from tests.chaos.runs import (
    NOT_STRUCK,
    PAIRS,
    Outcome,
    as_json,
    check_evaluated,
    check_generated,
    folder_of,
    parser_of,
    table_of,
    verdict,
)
from tests.commands import PATIENCE
from tests.conftest import make_paper, python_path, with_pairs, write_jsonl

FILES, PAPERS, WITHOUT_TEXT = 2, 240, 4  # of a generation
EVALUATED = 24
ROWS = 60  # papers of a block of the echo engine
HEARTBEAT, STALE = 0.5, 8.0  # seconds
MORE_STARTS = 2  # after the two drivers have ended, at most
REFUSED, FAILED = 2, 1  # exit codes

STAGES = ("ingest", "generate", "evaluate", "export")
ATTACKS = ("namespaces", "stopped", "clocks", "deleted", "replaced", "killed")
CASES = [(attack, stage) for attack in ATTACKS for stage in STAGES]


@dataclass(frozen=True)
class Moment:
    """Where the first driver is held: in a call of ``stage``, or before a file of this name appears."""

    stage: str
    most: int = 0  # calls that go through before
    written: str = ""  # pattern of the path


MOMENTS = {
    "ingest": [
        Moment("tokens", 3),
        Moment("write", 3, r"/papers/(?!_)[^/]*\.parquet$"),
        Moment("write", 0, r"/papers/_sources[^/]*\.json$"),
    ],
    "generate": [Moment("prompts", 2), Moment("generate", 2), Moment("write", 3, r"/generations/.*\.parquet$")],
    "evaluate": [
        Moment("embed", 1),
        Moment("judge", 1),
        Moment("write", 2, r"/(coverage|racar|grounding)\.parquet/.*\.parquet$"),
        Moment("write", 0, r"/evaluation/(summary|manifest)\.json$"),
    ],
    "export": [
        Moment("write", 0, r"/processed_output\.json$"),
        Moment("write", 0, r"/original_output\.json$"),
        Moment("write", 0, r"/rejected\.jsonl$"),
        Moment("write", 0, r"/manifest\.json$"),
        Moment("write", 0, r"/report/index\.html$"),
    ],
}


@dataclass(frozen=True)
class Place:
    """Where a driver runs. Without a ``host``: here."""

    name: str = "here"
    host: str = ""  # in PID, mount and UTS namespaces of its own, with this host name
    boot_id: Path | None = None  # file with another boot id

    def line(self, command: list[str], outer_proc: Path) -> list[str]:
        if not self.host:
            return command
        outer_proc.mkdir()
        script = f"hostname {self.host} && mount --rbind /proc {outer_proc} && mount -t proc proc /proc && "
        script += f"mount --bind {self.boot_id} /proc/sys/kernel/random/boot_id && " if self.boot_id else ""
        return [*UNSHARE, "sh", "-c", script + 'exec "$@"', "sh", *command]


UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts"]


def no_namespaces() -> str:
    """Why drivers cannot run in namespaces of their own, '' if they can."""
    try:
        done = subprocess.run([*UNSHARE, "hostname", "other"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unshare is not installed"
    return f"unshare is not permitted: {done.stderr.strip()}" if done.returncode else ""


class Driver:
    """A started command: its process, what it says, how it ended."""

    def __init__(self, line: list[str], plan: dict[str, Any], address: str, log: Path) -> None:
        environment = {**os.environ, "RAY_ADDRESS": address, VARIABLE: json.dumps(plan)}
        environment |= {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
        self.log, self.folder = log, Path(plan["folder"])
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                line, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int:
        """The exit code; that of SIGKILL if it hung."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    @property
    def last_line(self) -> str:
        return "".join(self.log.read_text().strip().splitlines()[-1:])

    def says(self) -> str:
        return f"{self.process.poll()}: {self.last_line[:200]}"


@dataclass
class Scene:
    """One seed: its directory, its drivers, and what they should have done."""

    outcome: Outcome
    draw: random.Random
    out: Path
    args: list[Any]
    address: str
    moment: Moment
    folder: Path
    drivers: list[Driver] = field(default_factory=list)

    @property
    def lease(self) -> Path:
        home = self.out / "evaluation" if self.outcome.stage == "evaluate" else self.out
        return home / "lease.json"

    def start(self, place: Place = Place(), moment: Moment | None = None, **plan: Any) -> Driver:
        """A driver, which is held at ``moment``."""
        number = len(self.drivers)
        folder = self.folder / f"held-{number}"
        folder.mkdir(parents=True)
        plan |= {"rows": ROWS, "heartbeat": HEARTBEAT, "stale": STALE, "folder": str(folder)}
        if moment:
            free = self.draw.randint(0, moment.most)
            plan |= {"hold": {moment.stage: free}, "written": moment.written}
            self.note(f"after {free} of {moment.written or moment.stage}")
        if place.host:
            plan["outer_proc"] = str(folder / "proc")
        line = [sys.executable, "-m", "tests.chaos.driver", *map(str, self.args)]
        driver = Driver(place.line(line, folder / "proc"), plan, self.address, self.folder / f"log-{number}.txt")
        self.drivers.append(driver)
        if moment and not wait_until(lambda: held(folder, moment.stage) > free or not driver.alive):
            self.problem(NOT_STRUCK)
        elif not driver.alive:
            self.problem(f"{NOT_STRUCK}: {driver.says()}")
        return driver

    def first(self, place: Place = Place(), **plan: Any) -> Driver:
        return self.start(place, self.moment, **plan)

    def release(self, driver: Driver) -> None:
        release(driver.folder, self.moment.stage)

    def note(self, text: str) -> None:
        self.outcome.detail = f"{self.outcome.detail}, {text}".removeprefix(", ")

    def problem(self, text: str) -> None:
        self.outcome.problems.append(text)

    def expect(self, who: str, driver: Driver, *codes: int) -> None:
        """Waits for the end of a driver. A failure is one line, and a driver that lost its run says so."""
        code = driver.end()
        if code not in codes:
            self.problem(f"{who} ended with {driver.says()}, expected {' or '.join(map(str, codes))}")
        said = driver.log.read_text()
        if code in (REFUSED, FAILED) and ("Traceback" in said or "driver" not in driver.last_line):
            self.problem(f"{who} said: {driver.last_line[:200]}")

    def host(self) -> Place:
        """Another host."""
        boot_id = self.folder / f"boot-id-{len(self.drivers)}"
        boot_id.write_text(f"{uuid.UUID(int=self.draw.getrandbits(128), version=4)}\n")
        return Place("another host", f"host-{len(self.drivers)}", boot_id)

    def elsewhere(self) -> Place:
        return self.draw.choice([self.host(), CONTAINER])


CONTAINER = Place("a container", "same-name")


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    """Waits until it is true; False after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# Attacks: the first driver is held, and something happens to it; both have ended when an attack is over.


def namespaces(scene: Scene) -> None:
    """Two containers with one host name: the second is refused, and the first ends well."""
    first = scene.first(CONTAINER)
    second = scene.start(CONTAINER)
    scene.expect("the second driver", second, REFUSED)
    scene.release(first)
    scene.expect("the first driver", first, 0)


def stopped(scene: Scene) -> None:
    """The first is stopped for longer than the lease lasts; another one does its work; it goes on."""
    first_place, second_place = scene.draw.choice(
        [(CONTAINER, CONTAINER), (scene.host(), CONTAINER), (Place(), scene.host())]
    )
    scene.note(f"stopped in {first_place.name}")
    first = scene.first(first_place)
    first.signal(signal.SIGSTOP)
    if tasks_go_on := scene.draw.random() < 0.5:
        scene.release(first)
    scene.note(f"second in {second_place.name}, tasks {'go on' if tasks_go_on else 'wait'}")
    take_over(scene, second_place)
    first.signal(signal.SIGCONT)
    scene.release(first)
    scene.expect("the first driver", first, FAILED)


def clocks(scene: Scene) -> None:
    """A clock is wrong by a minute: nobody takes over a driver that lives, and somebody a driver that died."""
    offset, mine = scene.draw.choice([-60, 60]), scene.draw.random() < 0.5
    scene.note(f"the {'first' if mine else 'second'} clock {offset:+d} s")
    wrong, right = {"clock_offset": offset}, {}
    first = scene.first(scene.host(), **(wrong if mine else right))
    place, plan = scene.host(), right if mine else wrong
    scene.expect("the second driver", scene.start(place, **plan), REFUSED)
    if scene.draw.random() < 0.5:
        scene.note("the first goes on")
        scene.release(first)
        scene.expect("the first driver", first, 0)
    else:
        scene.note("the first is killed")
        first.kill()
        take_over(scene, place, **plan)


def deleted(scene: Scene) -> None:
    """The lease of a driver that works is deleted: it never makes another."""
    first = scene.first()
    scene.lease.unlink()
    if wait_until(scene.lease.exists, 4 * HEARTBEAT):
        scene.problem("the lease was made again")
    second_comes(scene, first)


def replaced(scene: Scene) -> None:
    """The lease of a driver that works is replaced."""
    first = scene.first()
    content = scene.lease.read_bytes()
    kind = scene.draw.choice(["garbage", "empty", "a list", "a foreign lease", "an older copy"])
    scene.note(kind)
    foreign = {name: other(value) for name, value in json.loads(content).items()}
    new = {"garbage": b'{"id": "', "empty": b"", "a list": b"[1, 2]", "a foreign lease": json.dumps(foreign).encode()}
    if kind == "an older copy" and not wait_until(lambda: scene.lease.read_bytes() != content, 4 * HEARTBEAT):
        scene.problem("no heartbeat")
    replacement = scene.folder / "replacement"
    replacement.write_bytes(new.get(kind, content))
    replacement.replace(scene.lease)
    second_comes(scene, first)


def killed(scene: Scene) -> None:
    """The first is killed: another one on the same host takes over at once, while tasks may still write."""
    first = scene.first()
    first.kill()
    scene.expect("the second driver", scene.start(), 0)
    scene.release(first)


def other(value: Any) -> Any:
    """Another value of this type."""
    if isinstance(value, str):
        return value[::-1]
    return value + 1 if isinstance(value, int | float) else value


def take_over(scene: Scene, place: Place, **plan: Any) -> None:
    """A start that takes over a driver which gives no sign of life. It is refused until the lease is stale."""
    second = scene.start(place, **plan)
    if second.end() == REFUSED and "driver" in second.last_line:
        time.sleep(STALE)
        second = scene.start(place, **plan)
    scene.expect("the second driver", second, 0)


def second_comes(scene: Scene, first: Driver) -> None:
    """A second driver comes while the first works without a lease of its own: one of the two may end well."""
    place = scene.draw.choice([Place(), scene.elsewhere()])
    goes_on = scene.draw.choice(["before", "with", "after"])
    scene.note(f"second in {place.name}, the first goes on {goes_on} it")
    if goes_on == "before":
        scene.release(first)
    second = scene.start(place)
    if goes_on == "with":
        wait_until(lambda: not second.alive or scene.lease.exists())
        scene.release(first)
    elif goes_on == "after":
        second.end()
        scene.release(first)
    scene.expect("the first driver", first, 0, FAILED)
    scene.expect("the second driver", second, 0, REFUSED, FAILED)
    if first.end() == 0 == second.end():
        scene.problem("both drivers ended well")


class Attacks:
    """Runs seeds on the cluster at ``address``; ``folder`` holds inputs and what the runs write."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def run(self, seed: int, case: tuple[str, str] | None = None) -> Outcome:
        draw = random.Random(seed)
        attack, stage = case or CASES[seed % len(CASES)]
        outcome, begun = Outcome(seed, stage, attack), time.monotonic()
        folder = self.folder / f"run-{seed}"
        folder.mkdir()
        moments = MOMENTS[stage]
        moment = moments[(seed // len(CASES)) % len(moments)] if case is None else draw.choice(moments)
        args, dois = (self._evaluation if stage == "evaluate" else self._generation)(folder)
        scene = Scene(outcome, draw, folder / "out", args, self.address, moment, folder)
        try:
            globals()[attack](scene)
            finish(scene)
            check(scene, dois)
        except (OSError, ValueError, KeyError) as error:
            scene.problem(f"{type(error).__name__}: {error}")
        finally:
            for driver in scene.drivers:
                driver.kill()
        outcome.seconds = round(time.monotonic() - begun, 1)
        if outcome.good:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _generation(self, folder: Path) -> tuple[list[Any], set[str]]:
        papers = [make_paper(i) for i in range(PAPERS)]
        papers += [{"doi": f"10.0/without.{i}"} for i in range(WITHOUT_TEXT)]
        (folder / "papers").mkdir()
        for i in range(FILES):
            write_jsonl(folder / "papers" / f"{i}.jsonl", papers[i::FILES])
        args = ["generate", "--file_path", folder / "papers", "--output_dir", folder / "out", "--engine", "echo"]
        args += ["--num_qas", PAIRS, "--papers_per_shard", 60, "--report_papers", 2, "--no_progress"]
        return args, {paper["doi"] for paper in papers}

    def _evaluation(self, folder: Path) -> tuple[list[Any], set[str]]:
        papers = [with_pairs(i, PAIRS) for i in range(EVALUATED)]
        file = write_jsonl(folder / "pairs.jsonl", papers)
        args = ["evaluate", "--processed_output", file, "--output_dir", folder / "out", "--engine", "echo"]
        args += ["--papers_per_shard", 8, "--embedding_model", "echo", "--report_papers", 2, "--no_progress"]
        return args, {paper["doi"] for paper in papers}


def finish(scene: Scene) -> None:
    """Starts the command until it ends well."""
    ended_well = any(driver.process.poll() == 0 for driver in scene.drivers)
    manifest = scene.lease.with_name("manifest.json")
    if ended_well and not manifest.exists():
        scene.problem("a driver ended well, and the manifest is gone")
    for _ in range(MORE_STARTS):
        scene.outcome.starts += 1
        last = scene.start()
        if last.end() == 0:
            return
        scene.note(f"start {scene.outcome.starts}: {last.says()}")
    scene.problem(f"the command failed {MORE_STARTS} times: {scene.drivers[-1].says()}")


def check(scene: Scene, dois: set[str]) -> None:
    """What must hold once the last start has ended."""
    outcome, out = scene.outcome, scene.out
    if outcome.stage == "evaluate":
        check_evaluated(outcome, out, dois, {})
        manifest = json.loads((out / "evaluation" / "manifest.json").read_text())
        if manifest["counts"]["papers"] != EVALUATED:
            scene.problem(f"the manifest counts {manifest['counts']}")
        check_keys(scene, out / "evaluation" / "papers", ["doi"], EVALUATED)
        return
    check_generated(outcome, out, dois, {doi: "missing_key" for doi in dois if "without" in doi})
    check_keys(scene, out / "papers", ["doi"], PAPERS)
    check_keys(scene, out / "generations", ["doi", "window", "attempt"], PAPERS)


def check_keys(scene: Scene, folder: Path, key: list[str], number: int) -> None:
    """The rows of these files have each key once."""
    rows = pads.dataset(str(folder), format="parquet").to_table(columns=key).to_pylist()
    found = Counter(tuple(row.values()) for row in rows)
    scene.outcome.duplicated += len(rows) - len(found)
    if len(found) != number or len(rows) != number:
        scene.problem(f"{folder.name}: {len(rows)} rows, {len(found)} keys, expected {number}")


@contextlib.contextmanager
def one_node() -> Iterator[str]:
    """Address of a real cluster on this machine, with room for the tasks of a driver that holds its CPUs."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def main() -> int:
    options = parser_of(__doc__, runs=40).parse_args()
    if reason := no_namespaces():
        print(reason, file=sys.stderr)
        return 1
    folder = folder_of(options, "drivers-")
    outcomes = []
    with one_node() as address:
        attacks = Attacks(folder, address)
        for seed in range(options.seed, options.seed + options.runs):
            outcomes.append(attacks.run(seed))
            print(as_json(outcomes[-1]), file=sys.stderr, flush=True)
    print(table_of(outcomes))
    return verdict(outcomes, folder)


if __name__ == "__main__":
    sys.exit(main())
