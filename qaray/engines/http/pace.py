"""The pace of requests to an endpoint: how many are in flight, and how many start per second.

Requests in flight grow like TCP's window: they double with each round of answers, and by one a round after the first
refusal. A refusal (429), an overload (503) or a time-out shrinks them, at most once a round. A 429 also sets a limit of
starts per second, near the rate of the latest starts, which then follows the curve of TCP's CUBIC: it comes back to
what was refused, rests there, and goes beyond.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

FIRST_WINDOW = 16  # requests in flight at the start
SHRINK, SHRINK_REFUSED = 0.7, 0.95  # factors of the window after an overload, and after a refusal
RATE_SHRINK, RATE_SHRINK_SOON = 0.05, 0.2  # parts of the rate that a refusal takes, and one that follows SOON
SOON = 2.5  # seconds
PLATEAU = 15.0  # seconds until the rate is again what was refused
MOST_UNUSED = 1.5  # the rate does not grow beyond this many times the rate of the latest starts
MEASURED = 5.0  # seconds over which that is measured
PAUSE = 0.25  # seconds without a request after a refusal that names no time
LONGEST_PAUSE = 3600.0  # seconds; a longer Retry-After is not obeyed


class Pace:
    """The controller, without a clock of its own: ``now`` is in seconds of any monotonic clock."""

    def __init__(self, at_once: int, per_second: float | None = None) -> None:
        """``at_once``, ``per_second``: limits that are never exceeded."""
        self.at_once, self.per_second = at_once, per_second
        self.window = float(min(at_once, FIRST_WINDOW))
        self.rate = per_second  # starts per second that were refused last; None = no limit
        self.in_flight = 0
        self._doubling = True
        self._round_ends = 0.0  # the window does not shrink again before
        self._rate_set, self._taken = 0.0, 0.0  # when the rate was refused, and the part that this took
        self._next_start = 0.0
        self._starts: deque[float] = deque()  # times of the latest starts
        self._seconds = 1.0  # of an answer, smoothed

    def wait(self, now: float) -> float | None:
        """Seconds until a request may start, 0 if at once; None if one in flight must end first."""
        if self.in_flight >= int(self.window):
            return None
        return max(0.0, self._next_start - now)

    def start(self, now: float) -> None:
        """A request starts."""
        self.in_flight += 1
        self._starts.append(now)
        while self._starts[0] < now - MEASURED:
            self._starts.popleft()
        if rate := self._rate_at(now):
            self._next_start = max(now, self._next_start) + 1 / rate

    def answered(self, now: float, seconds: float) -> None:
        """A request was answered after ``seconds``."""
        self.in_flight -= 1
        self._seconds += 0.1 * (seconds - self._seconds)
        self.window = min(self.at_once, self.window + (1.0 if self._doubling else 1 / self.window))

    def ended(self) -> None:
        """A request ended in a way that says nothing about the pace."""
        self.in_flight -= 1

    def overloaded(self, now: float) -> None:
        """A request met an overload or a time-out."""
        self.in_flight -= 1
        self._shrink(now)

    def refused(self, now: float, retry_after: float | None = None) -> None:
        """A request was refused with 429, for ``retry_after`` seconds if the endpoint says so."""
        self.in_flight -= 1
        first_of_round = self._shrink(now, SHRINK_REFUSED)
        if first_of_round:
            soon = now < self._rate_set + SOON
            self.rate = max(0.1, (self._rate_at(now) or self._measured(now)))
            self._rate_set, self._taken = now, RATE_SHRINK_SOON if soon else RATE_SHRINK
        pause = PAUSE if retry_after is None else min(max(retry_after, 0.0), LONGEST_PAUSE)
        if first_of_round or retry_after is not None:
            self._next_start = max(self._next_start, now + pause)

    def _measured(self, now: float) -> float:
        """Starts per second of late; of the first second, all."""
        return len(self._starts) / max(1.0, now - self._starts[0]) if self._starts else 1.0

    def _rate_at(self, now: float) -> float | None:
        """The limit of starts per second at ``now``."""
        if self.rate is None or not self._taken:
            return self.rate
        curve = self.rate * (1 + self._taken * ((now - self._rate_set - PLATEAU) / PLATEAU) ** 3)
        grown = min(curve, max(self.rate, MOST_UNUSED * self._measured(now)))
        return min(grown, self.per_second) if self.per_second else grown

    def _shrink(self, now: float, factor: float = SHRINK) -> bool:
        """Shrinks the window, once in the time of an answer; whether it did."""
        if now < self._round_ends:
            return False
        self._doubling = False
        self.window = max(1.0, factor * max(1.0, min(self.window, self.in_flight + 1.0)))
        self._round_ends = now + max(self._seconds, 0.5)
        return True


class Gate:
    """Lets requests of one event loop through at a pace."""

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self.pace, self.clock = pace, clock
        self._turn = asyncio.Lock()  # requests pass one after another, in the order of their arrival
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Waits until a request may start. One of the pace's methods must be told how it ended, then ``changed``."""
        async with self._turn:
            while (wait := self.pace.wait(self.clock())) != 0.0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
            self.pace.start(self.clock())
        try:
            yield
        finally:
            self._changed.set()
