"""The driver's metrics for Prometheus, exported by Ray's agents; cluster/grafana.json draws them.

They carry the run's name. How many papers are done comes from the durable rows, so that it goes on after a restart.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from qaray.corpus.doi_index import Ingested
from qaray.evaluate.measure import Measured
from qaray.generate.rounds import Progress
from qaray.run.directory import Run, logged_steps
from qaray.run.telemetry import EVERY

# name → (tags besides run, what it is)
GAUGES: dict[str, tuple[tuple[str, ...], str]] = {
    "qaray_papers": ((), "papers of the run"),
    "qaray_papers_done": (("stage",), "papers that are owed nothing by the stage"),
    "qaray_rejected": (("reason",), "records (`ingest`) and papers without pairs; of the papers, those of this start"),
    "qaray_pairs": ((), "question-answer pairs written by this start"),
    "qaray_prompt_tokens": ((), "tokens read by this start"),
    "qaray_output_tokens": ((), "tokens written by this start"),
    "qaray_train_step": ((), "optimizer steps done"),
    "qaray_train_loss": ((), "loss of the last logged step"),
    "qaray_train_learning_rate": ((), "learning rate of the last logged step"),
    "qaray_train_tokens_per_second": ((), "tokens a second of the last logged step"),
    "qaray_train_step_seconds": ((), "seconds of the last logged step"),
}


class Meter(contextlib.AbstractContextManager["Meter"]):
    """Listens to what the stages report, within a ``with`` block. Ray must be connected when it is told something."""

    def __init__(self, run: Run) -> None:
        self._tags = {"run": run.root.name}
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # the last of each name and tags
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="qaray-meter", daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._done.wait(EVERY):
            for (name, tags), value in list(self._values.items()):
                self._gauges[name].set(value, tags=dict(tags))

    def ingested(self, counts: Ingested) -> None:
        self._set("qaray_papers", counts.papers)
        self._set("qaray_rejected", counts.rejected, reason="ingest")

    def generated(self, progress: Progress) -> None:
        self._set("qaray_papers", progress.papers)
        self._set("qaray_papers_done", progress.settled, stage="generate")
        for reason, number in progress.rejected_by.items():
            self._set("qaray_rejected", number, reason=reason)
        self._set("qaray_pairs", progress.pairs)
        self._set("qaray_prompt_tokens", progress.prompt_tokens)
        self._set("qaray_output_tokens", progress.output_tokens)

    def measured(self, progress: Measured) -> None:
        self._set("qaray_papers", progress.papers)
        self._set("qaray_papers_done", progress.done, stage=progress.stage)

    def trained(self, log: dict[str, Any]) -> None:
        """``log``: what a fine-tuning has written so far."""
        self._set("qaray_train_step", log["step"])
        if steps := logged_steps(log):
            last = steps[-1]
            for name in ("loss", "learning_rate", "tokens_per_second"):
                self._set(f"qaray_train_{name}", last[name])
            if last.get("tokens") and last["tokens_per_second"]:
                self._set("qaray_train_step_seconds", last["tokens"] / last["tokens_per_second"])

    def _set(self, name: str, value: float, **tags: str) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            own, text = GAUGES[name]
            self._gauges[name] = Gauge(name, description=text, tag_keys=("run", *own))
        every = {**self._tags, **tags}
        self._gauges[name].set(value, tags=every)
        self._values[name, tuple(every.items())] = value
