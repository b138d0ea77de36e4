"""Ends the driver with a line when its Ray cluster is lost.

Without its node's raylet a driver cannot continue, and a local cluster's GCS is not restarted: Ray's core then ends the
process without a word, up to a minute later. A remote head may come back in that minute.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
from collections.abc import Iterable

import psutil

from qaray.run.addresses import host_and_port
from qaray.run.waiting import SAVED, write_line

POLL = 1.0  # seconds between checks of the processes
POLLS_OF_HEAD = 15  # checks of the processes to one of a head on another machine
CONNECT_WAIT = 10.0  # seconds
ENDS_AFTER = 60  # seconds without a GCS after which Ray ends the process, its default
SERVERS = ("raylet", "gcs_server")


def watch_cluster() -> None:
    """Watches the cluster that this process is connected to, until the process ends."""
    import ray

    context, ending = ray.get_runtime_context(), threading.Event()
    node = context.get_node_id()
    processes = servers_of(node, psutil.process_iter(["name", "cmdline"]))
    head = "" if "gcs_server" in processes else context.gcs_address

    def watch() -> None:
        polls = 0
        while not ending.wait(POLL):
            dead = [name for name, process in processes.items() if not is_alive(process)]
            if dead and not ending.wait(POLL) and connected_to(node):
                write_line(2, f"{_new_line()}qaray: Ray's process {dead[0]} on this machine was killed; {SAVED}")
                os._exit(1)
            if not connected_to(node):
                return
            polls += 1
            if head and polls % POLLS_OF_HEAD == 0 and not answers(head):
                silent = f"waiting for the head of the Ray cluster at {head}, which does not answer"
                write_line(2, f"{_new_line()}{silent}; after {ENDS_AFTER} s Ray ends this process; {SAVED}")

    atexit.register(ending.set)  # before Ray's own handler, which ends the processes of a local cluster
    threading.Thread(target=watch, name="qaray-cluster", daemon=True).start()


def connected_to(node: str) -> bool:
    """Whether this process is still connected to the node of the cluster."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_node_id() == node


def servers_of(node: str, processes: Iterable[psutil.Process]) -> dict[str, psutil.Process]:
    """Name → Ray's process of a node, by the node's id in its command line; empty if they cannot be seen."""
    return {
        process.info["name"]: process
        for process in processes
        if process.info["name"] in SERVERS and any(word.endswith(f"={node}") for word in process.info["cmdline"] or ())
    }


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a killed child of this process remains as a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    with contextlib.suppress(OSError):
        socket.create_connection(host_and_port(address, "address"), CONNECT_WAIT).close()
        return True
    return False


def _new_line() -> str:
    """What ends a progress bar on standard error."""
    return "\n" if os.isatty(2) else ""
