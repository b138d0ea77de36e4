"""Continuous batching: a queue of prompts, slots that decode together, and a place for the next one as soon as one ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from qaray.engines.base import error_text, stream_seed
from qaray.engines.causal_lm import CausalLM
from qaray.engines.sampling import RandomStream, runs_in_circles, sample
from qaray.prompts import answer_is_complete
from qaray.schema import Completion, FinishReason, Prompt, RejectReason, complete

LOOK_EVERY = 16  # tokens between two looks at the text of a sequence
ROUND = 64  # slot lengths are multiples of this
GROWTH = 128  # places by which slots grow: a copy of the cache every so many steps


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float
    top_p: float
    seed: int
    min_tokens: int = 0  # before so many tokens nothing ends an answer


@dataclass
class _Sequence:
    """A prompt in a slot. Its slot is its place in the list of active sequences."""

    prompt: Prompt
    future: Future[Completion]
    draws: RandomStream
    begun: float = 0.0  # seconds of the monotonic clock
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Places of the slot that are filled: the newest token is not in the cache yet."""
        return len(self.prompt["token_ids"]) + len(self.tokens) - 1

    @property
    def capacity(self) -> int:
        """Places that the prompt takes, and some of the answer."""
        return min(len(self.prompt["token_ids"]) + GROWTH, self.need)

    @property
    def need(self) -> int:
        """Places that the sequence may fill."""
        tokens = len(self.prompt["token_ids"]) + self.prompt["max_tokens"]
        return -(-tokens // ROUND) * ROUND


class ContinuousBatcher:
    """Answers prompts that come at any time, many at once. One thread runs the model.

    Out of memory halves the number of slots; what was in flight starts again from its own random stream, so that its
    text is the same. A prompt that does not even fit alone is answered with an error.
    """

    def __init__(self, model: CausalLM, sampling: Sampling, max_batch: int) -> None:
        self.model, self.sampling = model, sampling
        self.max_batch = max_batch  # slots at most; halved when memory runs out
        self.steps = 0  # decoding steps so far
        self.decoded_tokens = 0
        self.prefilled_tokens = 0
        self._queue: deque[_Sequence] = deque()
        self._active: list[_Sequence] = []
        self._longest = 0  # places that every slot may come to need
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def submit(self, prompt: Prompt) -> Future[Completion]:
        """The completion to come. A prompt with an error, or without room for an answer, comes back at once."""
        future: Future[Completion] = Future()
        error = prompt["error"]
        if error is None and prompt["max_tokens"] < 1:
            error = f"{RejectReason.OVER_LENGTH}: no token is left for the answer"
        if error is not None:
            future.set_result(complete(prompt, error=error))
            return future
        seed = stream_seed(self.sampling.seed, prompt["doi"], prompt["window"], prompt["attempt"])
        with self._wake:
            if self._failure:
                raise RuntimeError("the engine has stopped") from self._failure
            self._queue.append(_Sequence(prompt, future, RandomStream(seed)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qaray-batcher", daemon=True)
                self._thread.start()
            self._wake.notify()
        return future

    def complete_all(
        self, prompts: Sequence[Prompt], on_done: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """The completions of ``prompts`` in their order."""
        futures = [self.submit(prompt) for prompt in prompts]
        if on_done:
            for future in futures:
                future.add_done_callback(lambda done: on_done(done.result()))
        return [future.result() for future in futures]

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not self._queue and not self._active:
                        self._wake.wait()
                try:
                    self._admit()
                    if self._active:
                        self._step()
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._shrink(error)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Hands an error of the model to all who wait: the actor is of no more use."""
        with self._wake:
            self._failure = error
            waiting = [*self._active, *self._queue]
            self._active, self._queue = [], deque()
        for sequence in waiting:
            sequence.future.set_exception(error)

    def _admit(self) -> None:
        """Fills free slots from the queue. The number of slots is set by what waits when none is in use."""
        cache = self.model.cache
        if not self._active:
            with self._wake:
                waiting = list(self._queue)[: self.max_batch]
            if not waiting:
                return
            self._longest = min(max(sequence.need for sequence in waiting), cache.budget_tokens)
            slots = max(1, min(self.max_batch, cache.budget_tokens // self._longest))
            cache.shape(slots, min(waiting[0].capacity, cache.budget_tokens // slots))
        while len(self._active) < min(cache.slots, self.max_batch):
            with self._wake:
                if not self._queue or min(self._queue[0].need, cache.budget_tokens) > self._longest:
                    return
                sequence = self._queue.popleft()
            self._active.append(sequence)
            self._reserve(sequence.capacity)
            sequence.begun = time.monotonic()
            logits = self.model.prefill(len(self._active) - 1, sequence.prompt["token_ids"])
            self.prefilled_tokens += len(sequence.prompt["token_ids"])
            self._take(logits[None], [sequence])

    def _reserve(self, places: int) -> None:
        """Makes the slots at least so long."""
        cache = self.model.cache
        if places > cache.capacity:
            cache.grow(min(places, cache.budget_tokens // cache.slots), in_use=len(self._active))

    def _step(self) -> None:
        active = self._active
        longest = max(sequence.length for sequence in active) + 1
        if longest > self.model.cache.capacity:
            self._reserve(longest + GROWTH)
        logits = self.model.decode([s.tokens[-1] for s in active], [s.length for s in active])
        self.steps += 1
        self._take(logits, list(active))

    def _take(self, logits: torch.Tensor, sequences: list[_Sequence]) -> None:
        """Draws the next token of each sequence and ends those that are done. ``logits`` [B, V]."""
        if any(len(s.tokens) < self.sampling.min_tokens for s in sequences):
            for row, sequence in enumerate(sequences):
                if len(sequence.tokens) < self.sampling.min_tokens:
                    logits[row, list(self.model.eos_ids)] = float("-inf")
        draws = [s.draws.next() for s in sequences]
        tokens = sample(logits, draws, self.sampling.temperature, self.sampling.top_p)
        for sequence, token in zip(sequences, tokens, strict=True):
            if token in self.model.eos_ids:
                self._finish(sequence, FinishReason.STOP)
                continue
            sequence.tokens.append(token)
            self.decoded_tokens += 1
            self._look(sequence)

    def _look(self, sequence: _Sequence) -> None:
        """Ends a sequence at its limit, at the end of the grammar, or in a loop."""
        written = len(sequence.tokens)
        full = written >= sequence.prompt["max_tokens"]
        if (full or written % LOOK_EVERY == 0) and written > self.sampling.min_tokens:
            text = self._text(sequence)
            end = answer_is_complete(text, sequence.prompt["num_qas"])
            if end is not None:
                self._finish(sequence, FinishReason.STOP, text[:end])
                return
            if runs_in_circles(sequence.tokens, text):
                self._finish(sequence, FinishReason.REPETITION, text)
                return
        if full:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: _Sequence, reason: FinishReason, text: str | None = None) -> None:
        """Answers a sequence and frees its slot; the last active sequence moves there, so that slots stay dense."""
        slot, last = self._active.index(sequence), len(self._active) - 1
        if slot != last:
            # One place more than its length: its newest token may be in the cache without having been drawn from.
            self.model.cache.move(last, slot, min(self._active[last].length + 1, self.model.cache.capacity))
            self._active[slot] = self._active[last]
        self._active.pop()
        sequence.future.set_result(
            complete(
                sequence.prompt,
                self._text(sequence) if text is None else text,
                output_tokens=len(sequence.tokens),
                finish_reason=reason,
                seconds=time.monotonic() - sequence.begun,
            )
        )

    def _text(self, sequence: _Sequence) -> str:
        return sequence.prompt["opening"] + self.model.tokenizer.decode(sequence.tokens)

    def _shrink(self, error: BaseException) -> None:
        """Half as many slots after running out of memory; alone, the sequence is given up."""
        flying = self._active
        self._active = []
        self.model.release()
        if len(flying) <= 1:
            for sequence in flying:
                sequence.future.set_result(
                    complete(sequence.prompt, error=error_text(RejectReason.ENGINE_ERROR, f"out of memory: {error}"))
                )
            return
        self.max_batch = max(1, len(flying) // 2)
        again = [_restarted(sequence, self.sampling.seed) for sequence in flying]
        with self._wake:
            self._queue.extendleft(reversed(again))


def _restarted(sequence: _Sequence, seed: int) -> _Sequence:
    prompt = sequence.prompt
    draws = RandomStream(stream_seed(seed, prompt["doi"], prompt["window"], prompt["attempt"]))
    return _Sequence(prompt, sequence.future, draws)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory: the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
