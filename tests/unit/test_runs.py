import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from qaray.run.directory import Run, RunError, RunRefused
from qaray.run.lease import lease
from qaray.run.stopping import StopSignal, stop_on_signal


@pytest.fixture
def run(tmp_path):
    return Run.at(str(tmp_path / "out"))


def holder(run, **values):
    (run.root / "lease.json").write_json(
        {"id": "other", "host": socket.gethostname(), "heartbeat": time.time(), **values}
    )


def test_whether_a_run_was_started_with_these_settings(run):
    assert not run.has_identity({"seed": 0})
    run.identify({"seed": 0})
    assert run.has_identity({"seed": 0})
    assert not run.has_identity({"seed": 1})
    run.identity.write_bytes(b"{")
    with pytest.raises(RunError, match="is corrupt.*remove it to start the run again"):
        run.has_identity({"seed": 0})


def test_identity(run):
    run.identify({"model": "a", "seed": 0})
    run.identify({"seed": 0, "model": "a"})
    with pytest.raises(RunRefused, match="seed: 0 in the run, 1 asked for"):
        run.identify({"model": "a", "seed": 1})
    with pytest.raises(RunRefused, match="top_p: None in the run"):
        run.identify({"model": "a", "seed": 0, "top_p": 1})
    (run.root / "run.json").fs.open_output_stream(run.identity.path).close()
    with pytest.raises(RunError, match="is corrupt"):
        run.identify({"model": "a", "seed": 0})


def test_lease_of_a_living_process_is_respected(run):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        started = psutil.Process(other.pid).create_time()
        holder(run, pid=other.pid, started=started)
        with pytest.raises(RunRefused, match=f"process {other.pid} on host .*, running"), lease(run):
            pass
        other.kill()
        other.wait()
        with lease(run):
            assert json.loads((run.root / "lease.json").open().read())["id"] != "other"
    assert not (run.root / "lease.json").exists()


def test_lease_of_another_process_with_the_same_number_is_free(run):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        holder(run, pid=other.pid, started=1.0)
        with lease(run):
            pass
        other.kill()


def test_lease_of_another_machine_ends_with_its_heartbeat(run):
    holder(run, host="elsewhere", pid=1, started=1.0)
    with pytest.raises(RunRefused, match="last heartbeat"), lease(run):
        pass
    holder(run, host="elsewhere", pid=1, started=1.0, heartbeat=time.time() - 60)
    with lease(run):
        pass


def test_a_driver_that_lost_its_lease_is_told(run, monkeypatch):
    monkeypatch.setattr("qaray.run.lease.HEARTBEAT", 0.05)
    with lease(run) as held:
        held.check()
        holder(run, host="elsewhere", pid=1, started=1.0)
        assert held.lost.wait(5)
        with pytest.raises(RunError, match="took over"):
            held.check()
    assert (run.root / "lease.json").exists()  # it is the other's


def test_stop_signal(run):
    run.root.make_folder()
    asked = StopSignal(run.stop_flag)
    assert not asked()
    run.stop_flag.write_json({})
    assert StopSignal(run.stop_flag)()


def test_shard_names_are_those_of_their_keys(run):
    keys = [("10.1/x", 0, 1), ("../y", 0, 1)]
    assert run.generation_file("part-000001", keys) == run.generation_file("part-000001", list(keys))
    assert run.generation_file("part-000001", keys) != run.generation_file("part-000001", keys[:1])
    assert run.generation_file("part-000001", keys).path.startswith(run.generations.path + "/part-000001.")


def test_a_signal_asks_for_a_stop_of_this_start_only(run):
    run.root.make_folder()
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal(run):
        assert not run.stop_flag.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        while not run.stop_flag.exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert run.stop_flag.exists()
    assert not run.stop_flag.exists()
    assert signal.getsignal(signal.SIGTERM) is before
