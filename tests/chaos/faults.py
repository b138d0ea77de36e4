"""Faults within the processes of a run: installed in every worker of a job by Ray's `worker_process_setup_hook`.

The plan is JSON in QARAY_FAULTS. What it may name:

    rows          papers of a block of the echo engine, set in the driver
    first_notice    seconds until the driver says what it waits for
    hold          {stage: n}: n calls of a stage go through, in all processes together; the others wait for `release`.
                  {stage: word}: those whose texts hold the word wait. {"train": step}: a training waits at that step.
                  {"write": n}: of the files that ``written`` matches, in workers and driver, the others wait when their
                  content is complete and they do not have their name yet
    written       pattern of paths
    folder        where held calls leave their tickets
    heartbeat, stale    seconds, of the driver's lease
    clock_offset  seconds that the wall clock is ahead, as the driver's lease sees it
    outer_proc    /proc of the cluster's PID namespace, for a driver in another one
    poison        {stage: word}: a row whose text holds the word kills its process, at the stages tokens, generate,
                  embed, judge, prompts, transformers, scorer
    every_write   every n-th write of a process fails with EIO
    full_after    after n writes of a process the disk is full
    read_only     every write is refused
    out_of_memory the engine runs out of device memory in its n-th call of the model, once a process
    mark          a file that is made when one of these strikes
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VARIABLE = "QARAY_FAULTS"


def install() -> None:
    """In a worker, before it does anything."""
    from qaray.run import stopping

    plan = json.loads(os.environ.get(VARIABLE, "{}"))
    stopping.CHECK_EVERY = 0.0  # blocks are small here: all of them would be done before the flag is looked at again
    _install_stages(plan.get("poison", {}), plan.get("hold", {}), Path(plan.get("folder", ".")))
    if "train" in plan.get("hold", {}):
        _install_training(plan["hold"]["train"], Path(plan["folder"]))
    _install_writes(plan)
    _install_held_writes(plan)
    if plan.get("out_of_memory"):
        _install_out_of_memory(plan["out_of_memory"], plan["mark"])


def install_in_driver(plan: dict[str, Any]) -> None:
    """In a driver, before it does anything."""
    from qaray.engines import echo, worker
    from qaray.run import lease

    echo.ROWS = plan.get("rows", echo.ROWS)
    worker.FIRST_NOTICE = plan.get("first_notice", worker.FIRST_NOTICE)
    lease.HEARTBEAT = plan.get("heartbeat", lease.HEARTBEAT)
    lease.STALE = plan.get("stale", lease.STALE)
    if "clock_offset" in plan:
        lease.time = _ShiftedTime(plan["clock_offset"])  # type: ignore[assignment]
    _install_held_writes(plan)


class _ShiftedTime:
    """The module ``time`` with a wall clock that is ahead by ``seconds``; the monotonic clock is the same."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return time.time() + self._seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _wrap(owner: type, name: str, before: Callable[..., None]) -> None:
    """``before`` runs with the arguments of the method, and then the method."""
    method = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        before(*args, **options)
        return method(*args, **options)

    setattr(owner, name, wrapped)


def _install_stages(poison: dict[str, str], holds: dict[str, int | str], folder: Path) -> None:
    from qaray.corpus.papers import _TokenCounter
    from qaray.embedding.embed import _Embedding
    from qaray.engines.echo import _Echo, _EchoScores
    from qaray.engines.local.engine import _Generator, _Scorer
    from qaray.generate.rounds import _Prompter

    places = {
        "tokens": (_TokenCounter, "_counted", "txt"),
        "prompts": (_Prompter, "__call__", "shard"),
        "generate": (_Echo, "_answers", "prompt"),
        "transformers": (_Generator, "_answers", "token_ids"),
        "scorer": (_Scorer, "_scores", "prefix"),
        "embed": (_Embedding, "_embedded", "documents"),
        "judge": (_EchoScores, "_scores", "prefix"),
    }
    for stage, (owner, name, column) in places.items():
        word = poison.get(stage)

        def before(_: Any, rows: Any, stage: str = stage, word: str | None = word, column: str = column) -> None:
            texts = [str(text) for text in rows[column].to_pylist()]
            free = holds.get(stage)
            if isinstance(free, str):
                free = 0 if any(free in text for text in texts) else None
            if free is not None:
                _hold(folder, stage, free)
            if word and any(word in text for text in texts):
                os.kill(os.getpid(), signal.SIGKILL)

        _wrap(owner, name, before)


def _install_training(step: int, folder: Path) -> None:
    from qaray.finetune.callback import RunCallback

    def before(_: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step and state.is_world_process_zero and not (folder / "train-go").exists():
            _hold(folder, "train", 0)

    _wrap(RunCallback, "on_step_end", before)


def _hold(folder: Path, stage: str, free: int) -> None:
    """Takes the next ticket; waits unless it is one of the first ``free``."""
    mine, number = folder / f"ticket-of-{os.getpid()}-{threading.get_ident()}", 0
    mine.write_text(str(os.getpid()))
    while True:
        try:
            os.link(mine, folder / f"{stage}-{number}")  # it appears with its content
            break
        except FileExistsError:
            number += 1
    mine.unlink()
    while number >= free and not (folder / f"{stage}-go").exists():
        time.sleep(0.05)


def held(folder: Path, stage: str) -> int:
    """Calls of a stage that have begun."""
    return len(list(folder.glob(f"{stage}-[0-9]*")))


def release(folder: Path, stage: str) -> None:
    """All held calls of a stage go on, and those to come."""
    (folder / f"{stage}-go").touch()


def _install_writes(plan: dict[str, Any]) -> None:
    from qaray.run.storage import Location

    every, full_after, read_only = plan.get("every_write"), plan.get("full_after"), plan.get("read_only")
    if not (every or full_after or read_only):
        return
    written = itertools.count(1)

    def fail(place: Any) -> None:
        number, code = next(written), 0
        if every and number % every == 0:
            code = errno.EIO
        elif full_after and number > full_after:
            code = errno.ENOSPC
        elif read_only:
            code = errno.EROFS
        if code:
            Path(plan["mark"]).touch()
            raise OSError(code, os.strerror(code), place.path)

    _wrap(Location, "_write_local", fail)


def _install_held_writes(plan: dict[str, Any]) -> None:
    from qaray.run.storage import Location

    if "write" not in plan.get("hold", {}):
        return
    free, folder, pattern = plan["hold"]["write"], Path(plan["folder"]), re.compile(plan["written"])
    write = Location.write

    @contextlib.contextmanager
    def held_write(place: Location) -> Iterator[Any]:
        with write(place) as stream:
            yield stream
            if pattern.search(place.path):
                _hold(folder, "write", free)

    Location.write = held_write  # type: ignore[method-assign]


def _install_out_of_memory(call: int, mark: str) -> None:
    import torch

    from qaray.engines.local.causal_lm import CausalLM

    calls = itertools.count(1)

    def fail(*_: Any, **__: Any) -> None:
        if next(calls) == call:
            Path(mark).touch()
            raise torch.OutOfMemoryError("CUDA out of memory (a fault of the plan)")

    _wrap(CausalLM, "decode", fail)
