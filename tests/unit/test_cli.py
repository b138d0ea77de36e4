"""What becomes of a command's error: a line and an exit code, the same whether Ray has carried it or not."""

import errno
import re

import pytest
from ray.exceptions import LocalRayletDiedError, RayTaskError, WorkerCrashedError

from qaray import config as configs
from qaray.cli import CONFIGS, _run, main
from qaray.config import Cluster, ConfigError
from qaray.run import cluster
from qaray.run.cluster import connect
from qaray.run.errors import RunError, RunRefused
from qaray.run.stopping import Stopped
from qaray.run.storage import StoreFailed

RETRIES = (
    "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, backoff, or "
    "which errors are retried, configure `ray.data.DataContext.get_current()`"
)


def in_a_task(error):
    return RayTaskError("work", "Traceback (most recent call last):\n  …\n", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("seed must be 0 or more"), 2, "seed must be 0 or more"),
        (in_a_task(ConfigError("the model has no such layer")), 2, "the model has no such layer"),
        (RunRefused("another driver works on it"), 2, "another driver works on it"),
        (FileNotFoundError(errno.ENOENT, "No such file", "papers.json"), 2, "papers.json: No such file"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.json/x"), 2, "a.json/x: Not a directory"),
        (FileNotFoundError("no file matches x*"), 2, "no file matches x*"),
        (
            OSError(errno.EEXIST, "[Errno 17] Cannot create 'a'. Detail: [errno 17] File exists"),
            2,
            "Cannot create 'a'.",
        ),
        (OSError(errno.EIO, "Input/output error", "a"), 1, "a: Input/output error; completed work is saved"),
        (LocalRayletDiedError(), 1, "The task's local raylet died"),
        (in_a_task(ConfigError("no\nFailed to apply UDF transform after 1/1 attempts")), 2, "no\n"),
        (
            in_a_task(FileNotFoundError(errno.ENOENT, "No such file", "a.parquet")),
            1,
            "a.parquet: No such file; completed",
        ),
        (in_a_task(RunError("papers would be lost")), 1, "papers would be lost"),
        (
            in_a_task(OSError(errno.ENOSPC, "No space left", "out/x")),
            1,
            "out/x: No space left; completed work is saved",
        ),
        (  # as Ray Data passes on what pyarrow raised
            in_a_task(OSError(errno.ENOSPC, "Cannot write. Detail: [errno 28] No space left", RETRIES)),
            1,
            "Cannot write. No space left; completed work is saved",
        ),
        (
            in_a_task(StoreFailed("cannot read s3/a: SLOW_DOWN")),
            1,
            "cannot read s3/a: SLOW_DOWN; completed work is saved",
        ),
        (WorkerCrashedError(), 1, "The worker died unexpectedly"),
        (Stopped("stopped with 3 papers done"), 143, "stopped with 3 papers done"),
    ],
)
def test_an_error_is_one_line(capsys, error, code, line):
    def command(_):
        raise error

    assert _run(command, None) == code
    told = capsys.readouterr().err
    assert told.startswith(f"qaray: {line}")
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_a_defect_keeps_its_traceback():
    def command(_):
        raise in_a_task(ZeroDivisionError("division by zero"))

    with pytest.raises(ZeroDivisionError):
        _run(command, None)


def test_debugging_shows_the_traceback_before_the_line(capsys, monkeypatch):
    monkeypatch.setenv("QARAY_DEBUG", "1")

    def command(_):
        raise ConfigError("seed must be 0 or more")

    assert _run(command, None) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.splitlines()[-1] == "qaray: seed must be 0 or more"


def test_a_cluster_that_does_not_start_is_one_line(capsys, monkeypatch):
    import ray

    def late(**_):
        raise Exception("The current node timed out during startup.\nThis could happen because …")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "START_LIMIT", 0.0)
    assert _run(lambda _: connect(), None) == 1
    told = capsys.readouterr().err
    assert told.startswith("qaray: no local Ray cluster could be started: The current node timed out during startup.")
    assert told.count("\n") == 1
    monkeypatch.setattr(cluster, "check_address", lambda *_: None)
    assert _run(lambda _: connect(Cluster(address="127.0.0.1:1")), None) == 1
    assert "the Ray cluster at 127.0.0.1:1 cannot be joined" in capsys.readouterr().err


def test_a_cluster_that_starts_late_is_started_again(monkeypatch):
    import ray

    late = [Exception("The current node timed out during startup.") for _ in range(7)]

    def init(**_):
        if late:
            raise late.pop()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "watch_cluster", lambda: None)
    connect()
    assert late == []


def test_a_cluster_that_demands_a_token_is_asked_once(capsys, monkeypatch):
    import ray

    asked = []

    def refuses(**options):
        asked.append(options)
        cause = RuntimeError(
            "Last connection error: …\nray.exceptions.AuthenticationError: RPC error: InvalidAuthToken"
        )
        raise ConnectionError("Failed to connect to Ray cluster.") from cause

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuses)
    monkeypatch.setattr(cluster, "check_address", lambda *_: None)
    assert _run(lambda _: connect(Cluster(address="127.0.0.1:1")), None) == 2
    assert "127.0.0.1:1 cannot be joined: it demands a token: set RAY_AUTH_MODE=token" in capsys.readouterr().err
    assert len(asked) == 1


def test_a_working_directory_that_was_removed_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["status", "out"]) == 2
    assert capsys.readouterr().err == "qaray: the working directory no longer exists: change to another one\n"


def test_a_busy_head_is_asked_again(monkeypatch):
    import ray

    tries = []

    def busy(**_):
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "check_address", lambda *_: None)
    monkeypatch.setattr(cluster, "watch_cluster", lambda: None)
    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    connect(Cluster(address="127.0.0.1:1"))
    assert len(tries) == 3


@pytest.mark.parametrize("command", CONFIGS)
def test_help_lists_every_flag_once_under_its_heading(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    config_type = getattr(configs, CONFIGS[command])
    for name in config_type.flags().keys() - {config_type.extra_flags}:
        assert len(re.findall(rf"^  --{name}(?= [A-Z\[]|$)", text, re.M)) == 1, name
    assert "[_" not in text
    assert (config_type.extra_metavar or "Usage") in text


def test_commands_are_in_four_groups(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w+):$", text, re.M) == ["Options", "Start", "Data", "Models", "Cluster"]
    assert re.findall(r"^  ([a-z-]+)  ", text, re.M)[2:] == list(CONFIGS)
