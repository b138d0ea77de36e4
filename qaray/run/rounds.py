"""The loop of a stage: what is still owed is worked on, round by round, until nothing is.

What a paper is owed follows from the durable rows alone. One round does all of it, unless a start was cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qaray.run.directory import Run, RunError
from qaray.run.lease import Lease


@dataclass(frozen=True)
class Owed:
    """What a stage still has to do."""

    shards: list[str]  # names of the paper shards with unfinished papers
    papers: int  # unfinished papers in all


def run_rounds(
    stage: str,
    run: Run,
    lease: Lease,
    owed: Owed,
    work: Callable[[Owed], Iterable[object]],
    find_owed: Callable[[], Owed],
) -> Owed:
    """Works until nothing is owed or a stop is requested; returns what is owed then.

    ``work`` runs one round and yields after each block that it has made durable. Raises RunError if another driver has
    taken the run, or if a round leaves as many papers as it found.
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
