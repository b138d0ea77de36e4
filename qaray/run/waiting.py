"""Waits for other machines: a line that says what is waited for, and signals that end the wait.

Ray's core and the clients of object stores wait in native code, where Python runs no signal handler. Python's low-level
handler still writes each signal to the wake-up descriptor, which a thread of the command line reads.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

FIRST_LINE, EVERY_LINE = 8.0, 30.0  # seconds until the first line of a wait, and between lines
GRACE = 2.0  # seconds that Python code has to end a wait after a signal
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVED = "completed work is saved; rerun the command to resume"
_bounded = threading.Event()
_waits: list[str] = []  # what is being waited for, the innermost last


@contextlib.contextmanager
def waiting(what: str, limit: float = math.inf) -> Iterator[None]:
    """Wraps a wait for ``what``: from time to time a line on standard error says so, whatever is shown of progress.

    Under ``bounded_waits``, SIGTERM and SIGINT end the process inside the block, and so do ``limit`` seconds.
    """
    begun, done, shown = time.monotonic(), threading.Event(), os.dup(2)  # the block may redirect standard error

    def tell() -> None:
        pause = FIRST_LINE
        while not done.wait(pause):
            pause, waited = EVERY_LINE, time.monotonic() - begun
            if waited > limit and _bounded.is_set():
                write_line(shown, f"qaray: gave up waiting for {what} after {waited:.0f} s; {SAVED}")
                os._exit(1)
            write_line(shown, f"waiting for {what} ({waited:.0f} s so far)")

    thread = threading.Thread(target=tell, name="qaray-waiting", daemon=True)
    thread.start()
    _waits.append(what)
    try:
        yield
    finally:
        _waits.pop()
        done.set()
        thread.join()
        os.close(shown)


@contextlib.contextmanager
def bounded_waits() -> Iterator[None]:
    """Ends the process when a ``waiting`` block reaches its limit, or does not end by itself on SIGTERM or SIGINT.

    For the command line: a library must not end its caller's process. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _bounded.set()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    shown = os.dup(2)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while received := receiver.recv(1):
            if received[0] in SIGNALS and _waits:
                what = _waits[-1]
                time.sleep(GRACE)
                if what in _waits:
                    write_line(shown, f"qaray: stopped while waiting for {what}; {SAVED}")
                    os._exit(128 + received[0])

    thread = threading.Thread(target=watch, name="qaray-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _bounded.clear()
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        receiver.close()
        os.close(shown)


def write_line(descriptor: int, line: str) -> None:
    """Writes a line to a descriptor of standard error, whatever ``sys.stderr`` is."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode(errors="backslashreplace"))
