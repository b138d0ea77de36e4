"""Progress of a running command: a bar on a terminal, plain lines elsewhere, nothing with --no_progress."""

from __future__ import annotations

import sys
import time
from typing import Any

from qaray.corpus.doi_index import Ingested
from qaray.evaluate.measure import Measured
from qaray.generate.rounds import Progress
from qaray.run.directory import logged_steps
from qaray.run.durations import duration, time_left

EVERY = 10.0  # seconds between two plain lines


class Display:
    """Shows progress on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._last_step = 0  # training step of the last line

    def notify(self, line: str) -> None:
        """Prints a line, unless quiet."""
        if not self.quiet:
            self.close()
            print(line, file=sys.stderr, flush=True)

    def ingested(self, counts: Ingested) -> None:
        if self._due():
            self._line(f"reading: {counts.papers} papers, {counts.rejected} rejected")

    def generated(self, progress: Progress) -> None:
        if self.quiet:
            return
        if self._terminal:
            self._draw(progress)
        elif self._due() or progress.settled == progress.papers:
            self._line(f"{progress.settled}/{progress.papers} papers, {describe(progress)}")

    def measured(self, progress: Measured) -> None:
        if self._terminal and not self.quiet:
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=progress.papers, desc=progress.stage, unit="paper", dynamic_ncols=True)
            self._bar.n = progress.done
            self._bar.refresh()
        elif self._due() or (progress.done == progress.papers and not self.quiet):
            seconds, done = time.monotonic() - progress.begun, progress.done - progress.done_before
            left = time_left(seconds, done, progress.papers - progress.done)
            self._line(f"{progress.stage}: {progress.done}/{progress.papers} papers{left}")

    def paged(self, done: int, pages: int) -> None:
        if self._due():
            self._line(f"report: {done}/{pages} pages")

    def trained(self, log: dict[str, Any]) -> None:
        """``log``: the training log so far."""
        done, steps, entries = log["step"], log["steps"], logged_steps(log)
        last = entries[-1] if entries else {"step": 0}
        if last["step"] == self._last_step or not (self._due() or (done == steps and not self.quiet)):
            return
        self._last_step = last["step"]
        recent = entries[-20:]
        speed = sum(entry["tokens"] for entry in recent) / sum(e["tokens"] / e["tokens_per_second"] for e in recent)
        each = sum(entry["tokens"] for entry in entries) / max(1, last["step"])
        left = f", about {duration((steps - done) * each / speed)} left" if done < steps else ""
        self._line(
            f"step {last['step']}/{steps}, loss {last['loss']:.4f}, learning rate {last['learning_rate']:.2g}, "
            f"{speed:,.0f} tokens/s, {last['memory_gib']} GiB{left}"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _due(self) -> bool:
        if self.quiet or time.monotonic() - self._last < EVERY:
            return False
        self._last = time.monotonic()
        return True

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=progress.papers, initial=progress.settled, unit="paper", dynamic_ncols=True)
        self._bar.n = progress.settled
        self._bar.set_postfix_str(describe(progress, eta=False))


def describe(progress: Progress, eta: bool = True) -> str:
    """Pairs, tokens per second, rejected papers and, if it can be estimated, the time left."""
    seconds = max(1e-9, time.monotonic() - progress.begun)
    parts = [f"{progress.pairs} pairs", f"{progress.output_tokens / seconds:,.0f} tokens/s"]
    if progress.rejected:
        parts.append(f"{progress.rejected} rejected")
    if (cost := progress.cost) is not None:
        parts.append(f"cost {cost:,.2f}")
    left = time_left(seconds, progress.settled - progress.settled_before, progress.papers - progress.settled)
    return ", ".join(parts) + (left if eta else "")
