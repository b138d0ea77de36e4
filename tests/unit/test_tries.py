"""Bounded tries: who is given up, who is alone, and what is left of the notes."""

import threading
import time

import pyarrow as pa
import pytest

from qaray.run.directory import Run
from qaray.run.errors import RunError
from qaray.run.tries import DEATHS, ROW_TRIES, SHARED_TRIES, START_TRIES, Guard, Tries

KEYS = ["a", "b", "c", "d"]
ROWS = pa.table({"key": KEYS})


class KilledError(Exception):
    pass


class Cluster:
    """Processes that die of some rows, one after another, as Ray starts them; a dead process takes no note away."""

    def __init__(self, folder, poison):
        self.tries, self.poison = Tries.of(Run.at(str(folder))), poison
        self.deaths, self.ran = 0, []
        self.dead = []  # parts of dead processes, kept so that nothing is cleaned up for them

    def run(self, keys, processes=99):
        for _ in range(processes):
            parts = Guard(self.tries).parts(keys)
            try:
                return self._one_process(parts, keys)
            except KilledError:
                self.dead.append(parts)
                self.deaths += 1
        return None

    def _one_process(self, parts, keys):
        answers = {}
        for part in parts:
            own = [keys[place] for place in part.rows]
            if part.given_up:
                answers.update(dict.fromkeys(own, "given up"))
                continue
            self.ran.append((own, part.alone))
            if set(own) & self.poison:
                raise KilledError
            answers.update(dict.fromkeys(own, "done"))
        return answers


def killed(tries, keys, times):
    """Processes that died of a block before anything of it was done."""
    dead = [Guard(tries).parts(keys) for _ in range(times)]
    for parts in dead:
        next(parts)
    return dead


def test_a_row_that_kills_is_given_up_and_its_neighbours_are_not(tmp_path):
    cluster = Cluster(tmp_path, {"c"})
    assert cluster.run(KEYS) == {"a": "done", "b": "done", "c": "given up", "d": "done"}
    assert cluster.deaths == DEATHS == 5
    assert [alone for rows, alone in cluster.ran if rows == KEYS] == [False] * SHARED_TRIES + [True]
    assert all(alone for rows, alone in cluster.ran if len(rows) == 1)
    assert cluster.ran.count((["c"], True)) == ROW_TRIES
    assert cluster.tries.folder.files() == []


def test_every_row_that_kills_costs_two_deaths_more(tmp_path):
    cluster = Cluster(tmp_path, {"a", "c", "d"})
    assert [key for key, end in cluster.run(KEYS).items() if end == "done"] == ["b"]
    assert cluster.deaths == SHARED_TRIES + 1 + 3 * ROW_TRIES
    assert cluster.tries.folder.files() == []


def test_the_bound_holds_over_drivers(tmp_path):
    first, second = Cluster(tmp_path, {"b"}), Cluster(tmp_path, {"b"})
    assert first.run(KEYS, processes=3) is None
    assert second.run(KEYS)["b"] == "given up"
    assert second.deaths == DEATHS - 3


def test_a_machine_that_goes_away_costs_only_its_work(tmp_path):
    cluster = Cluster(tmp_path, set())
    cluster.dead = killed(cluster.tries, KEYS, 2)
    assert cluster.run(KEYS) == dict.fromkeys(KEYS, "done")
    assert cluster.ran == [(KEYS, True)]


def test_an_error_is_no_death(tmp_path):
    guard = Guard(Tries.of(Run.at(str(tmp_path))))

    def fail(rows):
        raise ValueError("a mistake")

    for _ in range(DEATHS + 1):
        with pytest.raises(ValueError, match="a mistake"):
            guard.run(KEYS, ROWS, fail, fail)
    assert guard.run(KEYS, ROWS, lambda rows: rows, fail).equals(ROWS)


def test_rows_come_back_beside_those_that_are_given_up(tmp_path):
    tries = Tries.of(Run.at(str(tmp_path)))
    dead = killed(tries, KEYS, SHARED_TRIES + 1 + ROW_TRIES)
    assert len(dead) == DEATHS

    def mark(word):
        return lambda rows: rows.append_column("end", pa.array([word] * rows.num_rows))

    found = Guard(tries).run(KEYS, ROWS, mark("done"), mark("given up")).to_pylist()
    assert found == [{"key": key, "end": "given up" if key == "a" else "done"} for key in KEYS]


def test_no_rows_leave_no_notes(tmp_path):
    guard = Guard(Tries.of(Run.at(str(tmp_path))))
    assert guard.run([], ROWS.slice(0, 0), lambda rows: rows, lambda rows: rows).num_rows == 0
    assert not guard.tries.folder.exists()


def test_the_suspected_are_alone(tmp_path):
    """Many threads: while a suspected part runs, nothing else does."""
    guard = Guard(Tries.of(Run.at(str(tmp_path))))
    dead = killed(guard.tries, ["suspected"], SHARED_TRIES)
    running, most, beside = [], [], []

    def work(rows):
        key = rows["key"][0].as_py()  # a string: to compare tables, as a list does, other threads are let in
        running.append(key)
        most.append(len(running))
        if key == "suspected":
            beside.append(len(running) - 1)
            time.sleep(0.05)
            beside.append(len(running) - 1)
        time.sleep(0.01)
        running.remove(key)
        return rows

    def block(key):
        guard.run([key], pa.table({"key": [key]}), work, work)

    threads = [threading.Thread(target=block, args=(key,)) for key in ["1", "2", "3", "suspected", "4", "5", "6"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert beside == [0, 0]
    assert max(most) > 1
    assert running == []
    assert dead


def test_a_start_that_kills_its_process_is_told(tmp_path):
    tries = Tries.of(Run.at(str(tmp_path)))
    dead = [tries.starting("actor", "loading the model") for _ in range(START_TRIES)]
    for each in dead:
        each.__enter__()
    with (
        pytest.raises(RunError, match="loading the model killed its process 4 times"),
        tries.starting("actor", "loading the model"),
    ):
        pass
    with tries.starting("actor", "loading the model"):  # the next run of the command begins anew
        pass


def test_a_damaged_note_is_none(tmp_path):
    tries = Tries.of(Run.at(str(tmp_path)))
    tries.begin("x")
    (tmp_path / "tries" / "x.json").write_text("{")
    assert tries.begin("x") == 0
