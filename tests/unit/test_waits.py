"""Waits for other machines and for readers: a line says what is waited for, and the process can always be ended."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from qaray.config import ConfigError
from qaray.observe import terminal
from qaray.run import addresses, cluster, cluster_watch, waiting
from qaray.run.addresses import check_address, check_job_server
from qaray.run.cluster import check_temporary_folder
from qaray.run.errors import RunError
from tests.conftest import python_path

IN_NATIVE_CODE = """
import ctypes, signal
from qaray.run.waiting import bounded_waits, waiting
mutex, locks = ctypes.create_string_buffer(64), ctypes.CDLL(None)
locks.pthread_mutex_lock(mutex)
signal.signal(signal.SIGINT, lambda number, frame: None)  # also for the moment between "ready" and the wait
with bounded_waits(), waiting("a lock"):
    print("ready", flush=True)
    locks.pthread_mutex_lock(mutex)  # blocks for ever, and no signal handler of Python runs
"""


def test_a_signal_ends_a_wait_in_native_code():
    environment = {**os.environ, "PYTHONPATH": python_path()}
    command = [sys.executable, "-c", IN_NATIVE_CODE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert "qaray: stopped while waiting for a lock; completed work is saved" in told


def test_a_wait_says_what_for(monkeypatch, capfd):
    monkeypatch.setattr(waiting, "FIRST_LINE", 0.0)
    told = threading.Event()
    write = waiting.write_line
    monkeypatch.setattr(waiting, "write_line", lambda *line: (write(*line), told.set()))
    with waiting.waiting("the moon"):
        assert told.wait(60)
    assert capfd.readouterr().err.startswith("waiting for the moon (0 s so far)\n")


@pytest.mark.parametrize(
    "address",
    ["garbage", "http://127.0.0.1:8265", "host:99999", "host:port", ":6379", "ray://", "a b:1", "x" * 9000, "host:1/x"],
    ids=lambda address: address[:20],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="RAY_ADDRESS must be HOST:PORT, ray://HOST:PORT or auto, got") as refused:
        check_address(address, "RAY_ADDRESS")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("listens", [False, True], ids=["nothing", "silence"])
def test_where_no_cluster_answers_is_told(monkeypatch, listens):
    monkeypatch.setattr(addresses, "ANSWER_WAIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listens:
            server.close()
        with pytest.raises(RunError, match=rf"--address 127\.0\.0\.1:{port}: no Ray cluster answered"):
            check_address(f"127.0.0.1:{port}", "--address")
        with pytest.raises(ConfigError, match=rf"no job server answered at 127\.0\.0\.1:{port}"):
            check_job_server(f"http://127.0.0.1:{port}", "--address")


def test_a_host_without_an_address_is_told(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match="host nowhere: Name or service not known"):
        check_address("nowhere:6379", "--address")


class Listed:
    """A process in a list."""

    def __init__(self, name, *words):
        self.info = {"name": name, "cmdline": [name, *words]}


def test_the_processes_of_the_node_are_watched():
    own = Listed("raylet", "--node_id=ab12"), Listed("gcs_server", "--node-id=ab12")
    others = Listed("raylet", "--node_id=cd34"), Listed("python", "--node_id=ab12"), Listed("gcs_server")
    found = cluster_watch.servers_of("ab12", [*others, *own])
    assert found == {"raylet": own[0], "gcs_server": own[1]}


def test_a_killed_child_is_not_alive():
    import psutil

    child = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert cluster_watch.is_alive(child)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as Ray's processes are
        assert not cluster_watch.is_alive(child)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(("free", "words"), [(0, "0 MiB are free"), (None, "Not a directory")])
def test_a_temporary_folder_is_named(monkeypatch, tmp_path, free, words):
    folder = tmp_path / "file" / "tmp"
    if free is None:
        (tmp_path / "file").touch()
    else:
        monkeypatch.setattr(cluster.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(RunError, match=f"temporary folder {folder}: {words}.*RAY_TMPDIR"):
        check_temporary_folder(str(folder))


def test_output_outlives_its_reader():
    reader, writer = os.pipe()
    os.close(reader)
    with terminal.Stream(open(writer, "wb"), encoding="ascii", errors="backslashreplace") as stream:
        for _ in range(3):
            print("5 µm" * 5000, file=stream, flush=True)
        assert stream.reader_gone


def test_an_ascii_terminal_is_told_all():
    content = io.BytesIO()
    with terminal.Stream(content, encoding="ascii", errors="backslashreplace") as stream:
        print("5 µm – \ud800", file=stream, flush=True)
        assert content.getvalue() == b"5 \\xb5m \\u2013 \\ud800\n"


def test_closed_standard_output_is_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal.prepare()
    with sys.stdout:
        print("nobody reads this", flush=True)
