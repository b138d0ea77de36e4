"""Graceful stop of a run: SIGTERM and SIGINT, and the stop flag that workers check."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from qaray.run.directory import Run, utc_now
from qaray.run.storage import Location

CHECK_EVERY = 2.0  # seconds between checks of the stop flag


class Stopped(Exception):
    """The run was asked to stop. Completed work is saved; rerun the command to resume."""


class StopSignal:
    """Whether a stop is requested. Checks the flag in the run directory every CHECK_EVERY seconds."""

    def __init__(self, flag: Location) -> None:
        self.flag, self._seen, self._next = flag, False, 0.0

    def __reduce__(self) -> tuple[type[StopSignal], tuple[Location]]:
        return StopSignal, (self.flag,)  # monotonic clocks differ between machines

    def request(self) -> None:
        """Requests a stop: work in progress is finished and saved."""
        self.flag.write_json({"asked": utc_now()})
        self._seen = True

    def __call__(self) -> bool:
        if not self._seen and time.monotonic() >= self._next:
            self._seen, self._next = self.flag.exists(), time.monotonic() + CHECK_EVERY
        return self._seen


@contextlib.contextmanager
def handled(handle: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Calls ``handle`` on SIGTERM and SIGINT inside the block; yields a function that restores the previous handlers.

    Does nothing outside the main thread.
    """
    signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous = {each: signal.signal(each, lambda number, frame: handle()) for each in signals}

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def end_on_signal() -> Iterator[None]:
    """Raises Stopped on SIGTERM and SIGINT inside the block. For the time before work begins.

    The handler raises KeyboardInterrupt, because Ray swallows any other exception of a handler while it waits.
    """

    def handle() -> None:
        raise KeyboardInterrupt

    with handled(handle):
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped("stopped before work began; rerun the command to resume") from None


@contextlib.contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """Requests a stop on SIGTERM and SIGINT: work in progress is finished and saved. A second signal ends at once."""
    writers: list[threading.Thread] = []

    def handle() -> None:
        restore()
        writers.append(threading.Thread(target=StopSignal(run.stop_flag).request, name="qaray-stop"))
        writers[-1].start()  # a signal handler must not block on storage

    run.stop_flag.remove()
    try:
        with handled(handle) as restore:
            yield
    finally:
        for thread in writers:
            thread.join()
        run.stop_flag.remove()  # the flag was for this start only


StopCheck = Callable[[], bool]  # True once the run should end after the work in progress
