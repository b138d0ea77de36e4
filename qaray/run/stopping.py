"""How a run is stopped in order: SIGTERM and SIGINT, and the flag that workers look at."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from qaray.run.directory import Run, utc_now
from qaray.run.storage import Location

CHECK_EVERY = 2.0  # seconds between two looks at the stop flag


class Stopped(Exception):
    """The run was told to stop. What is done is durable; the same command goes on."""


class StopSignal:
    """Whether the run is to end after the work in hand: looked up in the run directory every CHECK_EVERY seconds."""

    def __init__(self, flag: Location) -> None:
        self.flag, self._seen, self._next = flag, False, 0.0

    def __reduce__(self) -> tuple[type[StopSignal], tuple[Location]]:
        return StopSignal, (self.flag,)  # another machine's clock is another one

    def __call__(self) -> bool:
        if not self._seen and time.monotonic() >= self._next:
            self._seen, self._next = self.flag.exists(), time.monotonic() + CHECK_EVERY
        return self._seen


@contextlib.contextmanager
def handled(handle: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGINT call ``handle`` in the block, but not in a thread; yields what ends that earlier."""
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
    """SIGTERM and SIGINT raise Stopped in the block, where no work is in hand yet.

    What a handler raises while Ray waits is lost, unless it is a KeyboardInterrupt.
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
    """SIGTERM and SIGINT ask for a stop: what is in hand is finished and written. A second one ends at once."""
    asking: list[threading.Thread] = []

    def handle() -> None:
        restore()
        asking.append(threading.Thread(target=ask, name="qaray-stop"))
        asking[-1].start()  # a handler must not wait for a store

    def ask() -> None:
        run.stop_flag.write_json({"asked": utc_now()})

    run.stop_flag.remove()
    try:
        with handled(handle) as restore:
            yield
    finally:
        for thread in asking:
            thread.join()
        run.stop_flag.remove()  # it was for this start, which has heeded it or was done before


StopCheck = Callable[[], bool]  # True once the run is to end after the work in hand
