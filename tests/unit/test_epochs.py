"""A model of the protocol of qaray.run.epochs: drivers and their tasks, interleaved between any two storage operations.

Each driver is a thread that runs the protocol's functions on a real run directory and pauses before each storage
operation, and before a file that it wrote gets its name. Hypothesis decides who goes on, who is stopped (never chosen
for a while), and who dies. A driver may start at any moment: what the lease says when it was deleted, replaced, or read
by a wrong clock, is no part of the safety.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qaray.generate import answers
from qaray.generate.answers import merge_answers
from qaray.run.directory import SHARD, Run
from qaray.run.epochs import Epoch, latest_claim
from qaray.run.errors import Damaged, RunRefused, Superseded
from qaray.run.storage import Location, NoExclusiveCreate
from qaray.schema import PARSED_SCHEMA

BLOCK = 2  # papers of a shard, answers of a task
LIVE = 3  # drivers that have not ended, at most
OPERATIONS = ("listing", "infos", "read_table", "remove", "remove_folder", "move_to")
THIS = threading.local()  # ``actor``: the one that runs in this thread


class Killed(BaseException):
    """Raised in the thread of an actor that died, at each of its operations."""


class Actor:
    """A thread that runs while it is advanced, one storage operation at a time."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.over, self.dead = work, False, False
        self.error: BaseException | None = None
        self.next, self.path = "start", ""  # the operation that it pauses before
        self.parent: Actor | None = getattr(THIS, "actor", None)
        self._go, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._parked.acquire()

    def advance(self) -> None:
        """To the next operation, or the end."""
        if not self.over:
            self._go.release()
            self._parked.acquire()

    def advance_to(self, place: str, path: str = "") -> None:
        """To the next operation of this name on such a path, or where it waits for its tasks, or the end."""
        self.advance()
        while not (self.over or self.next == "wait" or (self.next == place and re.search(path, self.path))):
            self.advance()

    def die(self) -> None:
        """It does nothing more: even what it does on its way out has no effect."""
        self.dead = True
        while not self.over:
            self.advance()

    def pause(self, place: str, path: str = "") -> None:
        if not self.dead:
            self.next, self.path = place, path
            self._parked.release()
            self._go.acquire()
        if self.dead:
            raise Killed

    def _run(self) -> None:
        THIS.actor = self
        try:
            self.pause("start")
            self.work()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.over = True
        self._parked.release()


def pause(place: str, path: str = "") -> None:
    if actor := getattr(THIS, "actor", None):
        actor.pause(place, path)


@contextlib.contextmanager
def stepwise(exclusive: bool) -> Iterator[None]:
    """Storage that pauses. ``exclusive``: it creates a file only where there is none."""
    write = Location.write

    @contextlib.contextmanager
    def paused_write(place: Location) -> Iterator[Any]:
        pause("claim" if re.search(r"/epochs/\d+\.\w+\.json$", place.path) else "write", place.path)
        with write(place) as stream:
            yield stream
            pause("name", place.path)

    def before(name: str, place: str) -> Callable[..., Any]:
        method = getattr(Location, name)

        @functools.wraps(method)
        def paused(file: Location, *args: Any, **options: Any) -> Any:
            pause(place, file.path)
            return method(file, *args, **options)

        return paused

    def no_create(place: Location, content: bytes) -> bool:
        raise NoExclusiveCreate

    with contextlib.ExitStack() as stack:
        for name in OPERATIONS:
            stack.enter_context(mock.patch.object(Location, name, before(name, name)))
        stack.enter_context(mock.patch.object(Location, "write", paused_write))
        stack.enter_context(
            mock.patch.object(Location, "create", before("create", "claim") if exclusive else no_create)
        )
        stack.enter_context(mock.patch.object(os, "fsync", return_value=None))  # nothing here cuts the power
        stack.enter_context(mock.patch.object(answers, "MAX_FILES", 2))
        yield


def answer(doi: str) -> dict[str, Any]:
    return {"doi": doi, "window": 0, "attempt": 1}


def dois(files: list[Location]) -> list[str]:
    return [doi for file in files for doi in dois_of(file.path, os.stat(file.path).st_mtime_ns)]


@functools.lru_cache(maxsize=1000)
def dois_of(path: str, written: int) -> list[str]:
    return [str(doi) for doi in pq.read_table(path, columns=["doi"])["doi"].to_pylist()]


def paper_keys(run: Run) -> list[str]:
    return dois(run.paper_shards())


def answered(run: Run) -> set[str]:
    """As ``read_answers``, which drops a key's second row, does it."""
    return set(dois(run.view.counting(run.generations.files(".parquet"))))


class Drivers(RuleBasedStateMachine):
    """What the drivers of one run directory may do to each other."""

    @initialize(exclusive=st.booleans(), late=st.booleans())
    def begin(self, exclusive: bool, late: bool) -> None:
        self.late = late  # what others do goes on after the last start
        self.folder = Path(tempfile.mkdtemp(prefix="epochs-"))
        self.root = Location.of(str(self.folder / "out"))
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(stepwise(exclusive))
        self.ids = itertools.count()
        self.actors: list[Actor] = []
        self.drivers: set[Actor] = set()
        self.newest: Actor | None = None  # the driver of the highest claim
        self.input = ["10.0/0", "10.0/1"]
        self.papers: set[str] = set()  # that a shard holds whose commit has returned
        self.answers: set[str] = set()  # likewise
        self.finished: dict[int, int] = {}  # papers of the manifests that were written to the end, by epoch
        self.unfinished = 0  # the last epoch that found work to do after that

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            self.last_start()
        finally:
            for actor in self.actors:
                actor.die()
            self.stack.close()
            shutil.rmtree(self.folder)

    # The actors: the order of run_generate, with the protocol's own functions.

    def drive(self, papers: list[str]) -> None:
        """A driver whose input holds these papers."""
        actor = THIS.actor
        epoch = Epoch.claim(self.root, {"id": f"driver{next(self.ids)}"})
        self.newest = actor if epoch.number == latest_claim(self.root) else None
        run = Run(self.root, epoch.adopt())
        run.view.check()
        run.restore()
        pause("connect")  # to Ray, which may take minutes
        run.clean()
        self.ingest(run, papers)
        owed = sorted(set(paper_keys(run)) - answered(run))
        if owed:
            run.unfinish()
            self.unfinished = epoch.number
        tasks = {self.spawn(functools.partial(self.ask, run, block)): block for block in blocks(owed)}
        while not all(task.over for task in tasks):
            pause("wait")
            for task, block in list(tasks.items()):
                if task.dead:  # Ray starts it again
                    del tasks[task]
                    tasks[self.spawn(functools.partial(self.ask, run, block))] = block
        for task in tasks:
            if task.error:
                raise task.error
        merge_answers(run, "part-000000", [file.path for file in run.view.counting(run.generations.files(".parquet"))])
        run.view.check()
        run.clean()
        count = len(answered(run))
        assert count == len(paper_keys(run)) or latest_claim(self.root) > epoch.number, "a driver counts wrongly"
        run.view.check()
        run.write_manifest({"papers": count})
        self.finished[epoch.number] = count

    def ingest(self, run: Run, papers: list[str]) -> None:
        known = set(paper_keys(run))
        fresh = [doi for doi in papers if doi not in known]
        if fresh:
            run.unfinish()
            self.unfinished = run.view.number
        first = len(run.paper_shards())
        for number, block in enumerate(blocks(fresh), first):
            run.write_shard(run.papers, SHARD.format(number), pa.table({"doi": block}))
            self.papers.update(block)

    def ask(self, run: Run, dois: list[str]) -> None:
        """A task: it goes on when its driver is stopped, and for a while when its driver dies."""
        file = run.generation_file("part-000000", [(doi, 0, 1) for doi in dois])
        rows = pa.Table.from_pylist([answer(doi) for doi in dois], schema=PARSED_SCHEMA)
        run.view.commit(file, functools.partial(file.write_table, rows))
        self.answers.update(dois)

    def spawn(self, work: Callable[[], None]) -> Actor:
        actor = Actor(work)
        self.actors.append(actor)
        return actor

    @property
    def live(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.over]

    # The rules

    @precondition(lambda self: len(self.drivers & set(self.live)) < LIVE)
    @rule(more=st.integers(0, 3), order=st.randoms(use_true_random=False), rounds=st.sampled_from([0, 0, 20, 60, 200]))
    def start(self, more: int, order: random.Random, rounds: int) -> None:
        """Its input has grown, and is read in another order."""
        self.input += [f"10.0/{len(self.input) + i}" for i in range(more)]
        actor = self.spawn(functools.partial(self.drive, order.sample(self.input, len(self.input))))
        self.drivers.add(actor)
        actor.advance_to("claim")
        self.go_on(lambda: [each for each in self.live if actor in (each, each.parent)], rounds)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), rounds=st.integers(1, 20))
    def one_goes_on(self, data: st.DataObject, rounds: int) -> None:
        """Whoever is not chosen is stopped."""
        actor = self.one(data)
        self.go_on(lambda: [actor], rounds)

    @precondition(lambda self: self.live)
    @rule(rounds=st.integers(1, 40))
    def all_go_on(self, rounds: int) -> None:
        self.go_on(lambda: self.live, rounds)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), place=st.sampled_from(["write", "name", "remove"]))
    def one_is_about_to(self, data: st.DataObject, place: str) -> None:
        """The dangerous moments: it has checked, and is about to change something."""
        actor = self.one(data)
        actor.advance_to(place)
        self.go_on(lambda: [actor], 0)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), rounds=st.integers(0, 2))
    def one_dies(self, data: st.DataObject, rounds: int) -> None:
        actor = self.one(data)
        self.go_on(lambda: [actor], rounds)
        actor.die()

    def one(self, data: st.DataObject) -> Actor:
        return self.live[data.draw(st.integers(0, len(self.live) - 1))]

    def go_on(self, who: Callable[[], list[Actor]], rounds: int) -> None:
        """These go on in turn."""
        for _ in range(rounds):
            for actor in who():
                actor.advance()
        for actor in self.actors:
            expected = (RunRefused, Superseded) if actor is self.newest else (RunRefused, Superseded, Damaged, OSError)
            if actor.over and actor.error and not isinstance(actor.error, expected):
                raise AssertionError("a driver failed") from actor.error

    def finish(self, *drivers: Actor) -> None:
        """These go on to their end, with their tasks."""
        while not all(driver.over for driver in drivers):
            for actor in self.live:
                if {actor, actor.parent} & set(drivers):
                    actor.advance()

    def last_start(self) -> None:
        """A driver that works alone ends well; what others do afterwards changes nothing."""
        before = self.live
        if not self.late:
            for actor in before:
                actor.die()
        last = self.spawn(functools.partial(self.drive, self.input))
        self.finish(last)
        assert last.error is None, f"the last start: {last.error!r}"
        if not self.late:
            raw = Counter(
                (folder, doi)
                for folder in ("papers", "generations")
                for file in (self.folder / "out" / folder).glob("part-*")
                for doi in dois([Location(self.root.fs, str(file))])
            )
            assert max(raw.values()) == 1, f"on disk twice: {[key for key in raw if raw[key] > 1]}"
        while self.live:  # tasks of drivers that are left have nothing to do
            for actor in self.live:
                actor.advance()
        self.go_on(list, 0)
        self.everything_counts_once()
        run = Run(self.root)
        assert sorted(answered(run)) == sorted(self.input) == sorted(paper_keys(run))
        assert run.read_manifest() == {"papers": len(self.input), "epoch": latest_claim(self.root)}

    # What a reader sees, at any moment

    @invariant()
    def everything_counts_once(self) -> None:
        if not hasattr(self, "root"):
            return
        run = Run(self.root).pinned()
        papers, replied = Counter(paper_keys(run)), answered(run)
        assert max(papers.values(), default=1) == 1, f"papers that count twice: {papers}"
        assert self.papers <= set(papers), "a paper is lost"
        assert self.answers <= replied, "an answer is lost"

    @invariant()
    def one_end_counts(self) -> None:
        if not hasattr(self, "root"):
            return
        manifest = Run(self.root).read_manifest()
        if manifest is not None:
            assert manifest["epoch"] >= self.unfinished, "a manifest counts of a driver that another one has superseded"
            assert manifest["papers"] <= len(answered(Run(self.root)))


def blocks(papers: list[str]) -> list[list[str]]:
    return [papers[i : i + BLOCK] for i in range(0, len(papers), BLOCK)]


Drivers.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestDrivers = Drivers.TestCase


# Single schedules, each of which breaks a protocol that lacks one of the rules.


@pytest.fixture(params=[True, False], ids=["exclusive_create", "no_exclusive_create"])
def model(request: pytest.FixtureRequest) -> Iterator[Drivers]:
    drivers = Drivers()
    drivers.begin(exclusive=request.param, late=False)
    yield drivers
    drivers.teardown()


def driver(model: Drivers, papers: int = 2) -> Actor:
    model.input = [f"10.0/{i}" for i in range(papers)]
    return model.spawn(functools.partial(model.drive, list(model.input)))


def test_of_two_claims_at_one_moment_at_most_one_stands(model: Drivers) -> None:
    first, second = driver(model), driver(model)
    first.advance_to("claim")
    second.advance_to("claim")
    model.finish(first, second)
    assert [type(actor.error) for actor in (first, second)].count(RunRefused) >= 1


def test_what_appears_before_a_claim_is_adopted(model: Drivers) -> None:
    first = driver(model)
    first.advance_to("wait")
    second = driver(model)
    second.advance_to("claim")
    model.finish(first)
    assert model.answers
    second.advance_to("wait")
    model.everything_counts_once()


@pytest.mark.parametrize("cleaned", [False, True])
def test_what_appears_after_the_list_counts_for_nobody_and_goes(model: Drivers, cleaned: bool) -> None:
    first = driver(model)
    first.advance_to("wait")
    task = model.live[-1]
    task.advance_to("name")
    second = driver(model)
    second.advance_to("wait")
    if cleaned:
        model.finish(second)
    model.finish(task)
    assert isinstance(task.error, Superseded)
    assert len(list((model.folder / "out" / "generations").glob("part-*"))) == cleaned
    model.everything_counts_once()


def test_a_manifest_that_comes_after_a_takeover_counts_for_nobody(model: Drivers) -> None:
    first = driver(model)
    first.advance_to("wait")
    model.finish(*model.live[1:])
    first.advance_to("write", r"/out/manifest\.json$")
    second = driver(model, papers=4)
    second.advance_to("wait")
    assert model.unfinished == 2
    second.die()
    model.finish(first)
    assert Run(model.root).read_manifest() is None


def test_the_driver_survives_that_a_superseded_one_removes_what_it_has_merged(model: Drivers) -> None:
    first = driver(model, papers=2 * BLOCK + 1)
    first.advance_to("wait")
    model.finish(*model.live[1:])
    first.advance_to("remove", "/generations/part-")
    second = driver(model, papers=2 * BLOCK + 1)
    second.advance_to("read_table", re.escape(first.path))
    model.finish(first)
    model.finish(second)
    assert isinstance(first.error, Superseded)
    assert second.error is None


def test_a_superseded_driver_leaves_what_the_driver_is_writing(model: Drivers) -> None:
    first = driver(model)
    first.advance_to("connect")
    second = driver(model)
    second.advance_to("connect")
    second.advance_to("wait")
    task = model.live[-1]
    task.advance_to("name")
    model.finish(first)
    model.finish(task)
    assert task.error is None
