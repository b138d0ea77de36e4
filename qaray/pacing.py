"""How often the driver looks at a run on Ray Data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

BUSY = 1.0  # seconds after a task's end, or a part of its results, in which Ray Data's own pace is kept
LONGEST = 1.0  # seconds between two looks where nothing happens


class UntilSomethingHappens(ExecutionCallback):
    """Waits with the next look at a run until a task has something to show.

    Ray Data's loop alone looks ten times a second, whatever happens. A look takes milliseconds of the driver: on a
    machine of few cores an engine's threads go without them, for the minutes that a block may take.
    """

    def __init__(self) -> None:
        self._happened = time.monotonic()

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        if time.monotonic() - self._happened < BUSY:
            return
        tasks = list({task.get_waitable() for op in executor._topology or () for task in op.get_active_tasks()})
        if not tasks or ray.wait(tasks, num_returns=1, timeout=LONGEST, fetch_local=False)[0]:
            self._happened = time.monotonic()
