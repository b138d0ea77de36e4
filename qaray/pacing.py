"""How often the driver looks at a run on Ray Data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

SHARE = 0.04  # of the time since anything happened that the next look may come later
LONGEST = 0.4  # seconds


class Unhurried(ExecutionCallback):
    """Looks less often where nothing happens: Ray Data's loop alone does so ten times a second.

    Each look takes milliseconds in the driver and in the actors that it asks: on a small machine an engine's threads
    go without them for the minutes that a block takes.
    """

    def __init__(self) -> None:
        self._happened, self._since = -1, time.monotonic()

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        counts = (op.metrics for op in executor._topology)
        happened = sum(each.num_inputs_received + each.num_task_outputs_generated for each in counts)
        now = time.monotonic()
        if happened != self._happened:
            self._happened, self._since = happened, now
        else:
            time.sleep(min(LONGEST, SHARE * (now - self._since)))
