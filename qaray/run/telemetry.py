"""Prometheus metrics of an engine process, exported by Ray's agents and plotted by cluster/grafana.json.

vLLM processes export vLLM's own metrics (`ray_vllm_…`) instead. The utilization of the engines is the rate of
`qaray_engine_busy_seconds`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

ENGINE = {
    "qaray_engine_queue": "prompts that wait for a slot of the engine",
    "qaray_engine_active": "sequences that are decoded together",
    "qaray_engine_busy_seconds": "seconds that the model has worked, since the process began",
    "qaray_engine_step_seconds": "mean seconds of a decoding step, of the last steps",
    "qaray_engine_prefill_tokens": "tokens read, since the process began",
    "qaray_engine_decode_tokens": "tokens written, since the process began",
}
EVERY = 5.0  # seconds between updates: Ray's agent drops a gauge that is not set for several report intervals


class EngineMeter:
    """Exports the metrics of an engine process while the process is alive.

    ``figures()`` returns queue, active, prefill_seconds, decode_seconds, steps, prefill_tokens and decode_tokens.
    """

    def __init__(self, figures: Callable[[], dict[str, float]]) -> None:
        from ray.util.metrics import Gauge

        self._figures = figures
        self._gauges = {name: Gauge(name, description=text) for name, text in ENGINE.items()}
        self._last: Counter[str] = Counter()
        threading.Thread(target=self._repeat, name="qaray-engine-meter", daemon=True).start()

    def _repeat(self) -> None:
        while True:
            time.sleep(EVERY)
            self._export(self._figures())

    def _export(self, figures: dict[str, float]) -> None:
        steps = figures["steps"] - self._last["steps"]
        seconds = figures["decode_seconds"] - self._last["decode_seconds"]
        self._last = Counter(figures)
        self._gauges["qaray_engine_busy_seconds"].set(figures["prefill_seconds"] + figures["decode_seconds"])
        if steps > 0:
            self._gauges["qaray_engine_step_seconds"].set(seconds / steps)
        for name in ("queue", "active", "prefill_tokens", "decode_tokens"):
            self._gauges[f"qaray_engine_{name}"].set(figures[name])
