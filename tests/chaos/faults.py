"""Faults within the processes of a run: installed in every worker of a job by Ray's `worker_process_setup_hook`.

The plan is JSON in QARAY_FAULTS. What it may name:

    pace          seconds that each row takes, so that there is time for faults from outside
    poison        {stage: word}: a row whose text holds the word kills its process, at the stages tokens, generate,
                  embed, judge
    every_write   every n-th write of a process fails with EIO
    full_after    after n writes of a process the disk is full
    read_only     every write is refused
    out_of_memory the engine runs out of device memory in its n-th call of the model, once a process
    mark          a file that is made when one of these strikes
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "QARAY_FAULTS"


def install() -> None:
    """In a worker, before it does anything."""
    plan = json.loads(os.environ.get(VARIABLE, "{}"))
    _install_poison(plan.get("poison", {}), plan.get("pace", 0.0))
    _install_writes(plan)
    if plan.get("out_of_memory"):
        _install_out_of_memory(plan["out_of_memory"], plan["mark"])


def _wrap(owner: type, name: str, before: Callable[..., None]) -> None:
    """``before`` runs with the arguments of the method, and then the method."""
    method = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        before(*args, **options)
        return method(*args, **options)

    setattr(owner, name, wrapped)


def _install_poison(poison: dict[str, str], pace: float) -> None:
    from qaray.corpus.papers import _TokenCounter
    from qaray.embedding.embed import _Embedding
    from qaray.engines.echo import _Echo, _EchoScores

    places = {
        "tokens": (_TokenCounter, "_counted", "txt"),
        "generate": (_Echo, "_answers", "prompt"),
        "embed": (_Embedding, "_embedded", "documents"),
        "judge": (_EchoScores, "_scores", "prefix"),
    }
    for stage, (owner, name, column) in places.items():
        word = poison.get(stage)

        def deadly(_: Any, rows: Any, word: str | None = word, column: str = column) -> None:
            time.sleep(pace * rows.num_rows)
            if word and any(word in str(text) for text in rows[column].to_pylist()):
                os.kill(os.getpid(), signal.SIGKILL)

        _wrap(owner, name, deadly)


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


def _install_out_of_memory(call: int, mark: str) -> None:
    import torch

    from qaray.engines.local.causal_lm import CausalLM

    calls = itertools.count(1)

    def fail(*_: Any, **__: Any) -> None:
        if next(calls) == call:
            Path(mark).touch()
            raise torch.OutOfMemoryError("CUDA out of memory (a fault of the plan)")

    _wrap(CausalLM, "decode", fail)
