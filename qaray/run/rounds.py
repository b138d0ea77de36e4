"""The loop of a stage: rounds over the unfinished papers until none are left.

Unfinished papers are determined from the saved rows alone. One round processes them all, unless it is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qaray.run.directory import Run
from qaray.run.errors import RunError
from qaray.run.lease import Lease


@dataclass(frozen=True)
class Owed:
    """Remaining work of a stage."""

    shards: list[str]  # names of the paper shards with unfinished papers
    papers: int  # number of unfinished papers
    prompt_tokens: int = 0  # of the answers that are saved
    output_tokens: int = 0


def run_rounds(
    stage: str,
    run: Run,
    lease: Lease,
    owed: Owed,
    work: Callable[[Owed], Iterable[object]],
    find_owed: Callable[[], Owed],
) -> Owed:
    """Runs rounds until no work is left or a stop is requested; returns the work left after the last complete round.

    ``work`` runs one round and yields after each saved block. Raises RunError if another driver has taken over the run,
    or if a round leaves as many papers as it found.
    """
    while owed.papers and not run.stop_flag.exists():
        for _ in work(owed):
            lease.check()
        if run.stop_flag.exists():
            break
        before, owed = owed, find_owed()
        if owed.papers >= before.papers:
            raise RunError(f"{stage} made no progress: {owed.papers} papers are left")
    return owed
