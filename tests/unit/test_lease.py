"""Who drives a run: the process table where it is the same one, else a heartbeat that changes."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import psutil
import pytest

from qaray.run import lease as leases
from qaray.run.directory import Run
from qaray.run.epochs import latest_claim
from qaray.run.errors import RunRefused, Superseded
from qaray.run.lease import Lease, lease, process_table


@pytest.fixture
def run(tmp_path):
    return Run.at(str(tmp_path / "out"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT", 0.05)
    monkeypatch.setattr(leases, "STALE", 0.5)


def holder(run, **values):
    run.root.make_folder()
    (run.root / "lease.json").write_json({"id": "other", **process_table(), "epoch": 0, "beat": 1, **values})


@contextmanager
def process():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        yield other
        other.kill()


@contextmanager
def beating(run, **values):
    """A heartbeat of a driver elsewhere."""
    ended = threading.Event()

    def beat():
        number = 0
        while not ended.wait(0.02):
            number += 1
            holder(run, beat=number, **values)

    holder(run, **values)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


ELSEWHERE = [{"host": "elsewhere"}, {"boot": "another"}, {"pid_namespace": "pid:[1]"}]


def test_a_living_process_is_respected_and_a_dead_one_is_not(run):
    with process() as other:
        holder(run, pid=other.pid, started=psutil.Process(other.pid).create_time())
        with pytest.raises(RunRefused, match=f"process {other.pid} on host .*, running"), lease(run):
            pass
        assert latest_claim(run.root) == 0
        other.kill()
        other.wait()
        with lease(run) as held:
            content = json.loads((run.root / "lease.json").open().read())
            assert (content["id"], content["epoch"], held.run.epoch.number) == (held.id, 1, 1)
    assert not (run.root / "lease.json").exists()


def test_a_process_with_the_same_number_is_another(run):
    with process() as other:
        holder(run, pid=other.pid, started=1.0)
        with lease(run):
            pass


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_process_number_of_another_table_says_nothing(run, place, quick):
    """Two containers have one host name, and each a process 1; the clocks of two hosts may differ by any amount."""
    with process() as other:
        own = {"pid": other.pid, "started": psutil.Process(other.pid).create_time(), "heartbeat": 0.0}
        holder(run, **own, **place)
        with lease(run):  # it is running here, but it is not the holder, which is silent
            pass
        with beating(run, **own, **place), pytest.raises(RunRefused, match="whose heartbeat goes on"), lease(run):
            pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b'{"id": 3}', b"\xff\xfe"])
def test_an_unreadable_lease_is_watched(run, content, quick):
    run.root.make_folder()
    (run.root / "lease.json").write_bytes(content)
    notes = []
    with lease(run, notes.append):
        pass
    assert len(notes) == 1
    assert "looking for a sign of life of" in notes[0]


def test_a_stopped_process_is_taken_over_once_it_is_silent(run, quick):
    with process() as other:
        os.kill(other.pid, signal.SIGSTOP)
        holder(run, pid=other.pid, started=psutil.Process(other.pid).create_time())
        while psutil.Process(other.pid).status() != psutil.STATUS_STOPPED:
            pass
        with lease(run) as held:
            assert held.run.epoch.number == 1


def test_a_second_driver_in_this_process_is_refused(run):
    with lease(run), pytest.raises(RunRefused, match="running"), lease(run):
        pass


def test_a_driver_is_told_that_another_took_over(run):
    with lease(run) as held:
        held.check()
        leases.Epoch.claim(run.root, {"id": "other"})
        with pytest.raises(Superseded, match="took over"):
            held.check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.remove(), "was removed"),
        (lambda file: file.write_bytes(b"x"), "was replaced"),
        (lambda file: file.write_bytes(b'{"id": "y", "epoch": 9}'), "was replaced"),
    ],
    ids=["removed", "garbage", "another's"],
)
def test_a_lease_that_is_gone_is_not_made_again(run, change, words, quick):
    with lease(run) as held:
        change(held.file)
        left = held.file.open().read() if held.file.exists() else None
        held._thread.join()  # the heartbeat ends
        with pytest.raises(Superseded, match=words):
            held.check()
        assert (held.file.open().read() if held.file.exists() else None) == left


def test_a_late_heartbeat_of_a_superseded_driver_does_no_harm(run, quick):
    with lease(run) as held:
        earlier = json.loads(held.file.open().read())
        held.file.write_json({**earlier, "id": "stale", "epoch": held.run.epoch.number - 1})
        held.check()
        while held.id.encode() not in held.file.open().read():
            pass  # until the next beat
    assert not held.file.exists()


def test_a_heartbeat_does_not_make_a_lease_that_was_removed_at_that_moment(run):
    with lease(run) as held:
        held._done.set()
        held._thread.join()
        held.file.remove()
        held._write()
        assert not held.file.exists()


def test_status_sees_no_other_driver_than_the_living_one(run, quick):
    assert Lease(run).live_driver(0.2) == ""
    with lease(run):
        assert "running" in Lease(run).live_driver(0.2)


def test_a_driver_whose_directory_was_moved_stops(run, tmp_path):
    with lease(run) as held:
        (tmp_path / "out").rename(tmp_path / "moved")
        with pytest.raises(Superseded, match="was moved or removed"):
            held.run.epoch.check()
        assert not (tmp_path / "out").exists()
        (tmp_path / "moved").rename(tmp_path / "out")


def test_a_pipe_is_no_lease_that_would_be_waited_for(run, quick):
    run.root.make_folder()
    os.mkfifo(run.root.path + "/lease.json")
    with pytest.raises(Superseded, match=r"lease\.json was replaced|was removed"), lease(run) as held:
        os.unlink(held.file.path) if os.path.exists(held.file.path) else None
        held.check()
