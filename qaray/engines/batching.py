"""Continuous batching: a queue of prompts, and lanes of slots that take the next one as soon as one ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from qaray.engines.base import StopCheck
from qaray.engines.causal_lm import CausalLM
from qaray.engines.lane import Lane, NextAttempt, Queue
from qaray.engines.sampling import Sampling
from qaray.schema import Completion, Prompt, RejectReason, complete


class ContinuousBatcher:
    """Answers prompts that come at any time, many at once.

    ``max_batch`` slots are divided among ``lanes`` on the same weights, by default as the model says: on a GPU one, on
    CPUs as many as pay. Each has a thread of its own.

    ``next_attempt`` says whether a prompt is asked again after an answer: that happens at once, in the same slot, whose
    prompt is in the cache already.
    """

    def __init__(
        self,
        model: CausalLM,
        sampling: Sampling,
        max_batch: int,
        next_attempt: NextAttempt = lambda prompt, completion: None,
        should_stop: StopCheck = lambda: False,
        lanes: int | None = None,
    ) -> None:
        self._queue = Queue()
        models = model.divided(model.lanes(max_batch) if lanes is None else lanes)
        slots = [max(1, (max_batch + place) // len(models)) for place in range(len(models))]
        self.lanes = [
            Lane(each, sampling, own, next_attempt, should_stop, self._queue)
            for each, own in zip(models, slots, strict=True)
        ]
        self._threads = [threading.Thread(target=lane.run, name="qaray-lane", daemon=True) for lane in self.lanes]

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        """The completions to come, one an attempt; none if the run stops before its turn.

        A prompt with an error, or without room for an answer, comes back at once. Raises RuntimeError once the batcher
        has failed or is closed.
        """
        future: Future[list[Completion]] = Future()
        error = prompt["error"]
        if error is None and prompt["max_tokens"] < 1:
            error = f"{RejectReason.OVER_LENGTH}: no token is left for the answer"
        if error is not None:
            future.set_result([complete(prompt, error=error)])
            return future
        with self._queue.changed:
            self._queue.put(prompt, future)
            for thread in self._threads:
                if thread.ident is None:
                    thread.start()
        return future

    def complete_all(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """The completions of ``prompts`` in their order, all attempts of a prompt together."""
        with self._queue.changed:  # the slots are divided with all of them in view
            futures = [self.submit(prompt) for prompt in prompts]
        return [completion for future in futures for completion in future.result()]

    def close(self) -> None:
        """Ends the threads, once all that was submitted is answered: one that works when Python ends aborts it."""
        self._queue.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def figures(self) -> dict[str, float]:
        """What the batcher does now, and has done so far; seconds and tokens. Seconds and steps: a lane's mean."""
        lanes = self.lanes
        with self._queue.changed:
            return {
                "queue": len(self._queue.waiting),
                "active": sum(len(lane.active) for lane in lanes),
                "steps": sum(lane.steps for lane in lanes) / len(lanes),
                "prefill_seconds": sum(lane.prefill_seconds for lane in lanes) / len(lanes),
                "decode_seconds": sum(lane.decode_seconds for lane in lanes) / len(lanes),
                "prefill_tokens": sum(lane.prefilled_tokens for lane in lanes),
                "decode_tokens": sum(lane.decoded_tokens for lane in lanes),
            }
