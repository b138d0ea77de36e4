"""Continuous batching: a queue of prompts, slots that decode together, and the next prompt as soon as one ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice, takewhile

import torch

from qaray.asking.grammar import answer_end
from qaray.engines.attempts import stream_seed, unanswerable
from qaray.engines.endings import runs_in_circles
from qaray.engines.local.causal_lm import CausalLM
from qaray.engines.local.cpu import compute_on
from qaray.engines.local.sampling import RandomStream, Sampling, sample
from qaray.engines.pool import worker_name
from qaray.run.stopping import StopCheck
from qaray.schema import Completion, Failure, FinishReason, Prompt, RejectReason, complete

LOOK_EVERY = 16  # tokens between two looks at the text of a sequence
ROUND = 64  # slot lengths are multiples of this
RECOVERY = 64  # answers after which the number of slots may double again
GROWTH = 128  # places by which slots grow: a copy of the cache every so many steps


@dataclass(eq=False)
class _Sequence:
    """A prompt in a slot. Its slot is its place in the list of active sequences."""

    prompt: Prompt
    future: Future[list[Completion]]
    draws: RandomStream
    begun: float = 0.0  # seconds of the monotonic clock
    prefill_seconds: float = 0.0  # of this attempt: none where the prompt was in the cache
    tokens: list[int] = field(default_factory=list)
    done: list[Completion] = field(default_factory=list)  # answers of earlier attempts
    first_logits: torch.Tensor | None = None  # [V], after the prompt: another attempt starts from them

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

    ``next_attempt`` says whether a prompt is asked again after an answer: that happens at once, in the same slot, whose
    prompt is in the cache already.
    """

    def __init__(
        self,
        model: CausalLM,
        sampling: Sampling,
        max_batch: int,
        next_attempt: Callable[[Prompt, Completion], Prompt | None] = lambda prompt, completion: None,
        should_stop: StopCheck = lambda: False,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.name = worker_name()
        self.next_attempt, self.should_stop = next_attempt, should_stop
        self.max_batch = self.most = max_batch  # slots at most; halved when memory runs out
        self.steps = 0  # decoding steps so far
        self.decoded_tokens = 0
        self.prefilled_tokens = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self._queue: deque[_Sequence] = deque()
        self._active: list[_Sequence] = []
        self._since_shrink = 0  # answers since memory ran out
        self._longest = 0  # places that every slot may come to need
        self._threads = torch.get_num_threads()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        """The completions to come, one an attempt; none if the run stops before its turn.

        A prompt with a failure, or without room for an answer, comes back at once. Raises RuntimeError once the batcher
        has failed or is closed.
        """
        future: Future[list[Completion]] = Future()
        if failure := unanswerable(prompt):
            future.set_result([complete(prompt, failure=failure)])
            return future
        with self._wake:
            if self._failure or self._closed:
                raise RuntimeError("the engine has stopped") from self._failure
            self._queue.append(_Sequence(prompt, future, self._draws(prompt)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qaray-batcher", daemon=True)
                self._thread.start()
            self._wake.notify()
        return future

    def complete_all(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """The completions of ``prompts`` in their order, all attempts of a prompt together."""
        with self._wake:  # the slots are divided with all of them in view
            futures = [self.submit(prompt) for prompt in prompts]
        return [completion for future in futures for completion in future.result()]

    def close(self) -> None:
        """Ends the thread, once all that was submitted is answered: one that still works when Python ends aborts it."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread:
            self._thread.join()

    def figures(self) -> dict[str, float]:
        """What the batcher does now, and has done so far; seconds and tokens."""
        with self._wake:
            return {
                "queue": len(self._queue),
                "active": len(self._active),
                "steps": self.steps,
                "prefill_seconds": self.prefill_seconds,
                "decode_seconds": self.decode_seconds,
                "prefill_tokens": self.prefilled_tokens,
                "decode_tokens": self.decoded_tokens,
            }

    def _draws(self, prompt: Prompt) -> RandomStream:
        return RandomStream(stream_seed(self.sampling.seed, prompt["doi"], prompt["window"], prompt["attempt"]))

    @torch.inference_mode()
    def _run(self) -> None:
        compute_on(self._threads)
        try:
            while True:
                with self._wake:
                    while not self._queue and not self._active:
                        if self._closed:
                            return
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
        if self._queue and self.should_stop():
            self._turn_away()
        if not self._active:
            if self._since_shrink >= RECOVERY:  # what was too much then need not be now
                self.max_batch, self._since_shrink = min(self.most, 2 * self.max_batch), 0
            with self._wake:
                waiting = list(self._queue)[: self.max_batch]
            if not waiting:
                return
            self._longest = min(max(sequence.need for sequence in waiting), cache.budget_tokens)
            slots = max(1, min(self.max_batch, cache.budget_tokens // self._longest))
            cache.shape(slots, min(self._capacity(waiting[0]), cache.budget_tokens // slots))
        if self._would_gain():
            return
        while sequence := self._arrival():
            self._read(sequence)
            assert sequence.first_logits is not None
            self._take(sequence.first_logits[None].clone(), [sequence])

    def _arrival(self) -> _Sequence | None:
        """The next prompt, in the next slot; None if there is none or no room for it."""
        cache = self.model.cache
        free = max(0, min(cache.slots, self.max_batch) - len(self._active))
        with self._wake:
            coming = list(takewhile(self._has_room, islice(self._queue, free)))
            if not coming:
                return None
            self._queue.popleft()
        held = len(self._active)
        self._active.append(coming[0])
        # At once for all that come now: slots that grow later hold more, which is copied.
        self._longest = max(self._longest, *(min(each.need, cache.budget_tokens) for each in coming))
        self._reserve(max(self._capacity(each) for each in coming), held)
        return coming[0]

    def _read(self, sequence: _Sequence) -> None:
        """Prefills the newest active sequence."""
        sequence.begun = time.monotonic()
        ids = sequence.prompt["token_ids"]
        sequence.first_logits = self.model.prefill(len(self._active) - 1, ids)
        sequence.prefill_seconds = time.monotonic() - sequence.begun
        self.prefill_seconds += sequence.prefill_seconds
        self.prefilled_tokens += len(ids)

    def _has_room(self, sequence: _Sequence) -> bool:
        """Whether every slot may become as long as the sequence needs: more than all of the memory is given to none."""
        cache = self.model.cache
        return min(sequence.need, cache.budget_tokens) * cache.slots <= cache.budget_tokens

    def _capacity(self, sequence: _Sequence) -> int:
        """Places of a slot when the sequence comes: only CPUs gain from slots no longer than what they hold."""
        return sequence.capacity if self.model.device.type == "cpu" else self._longest

    def _would_gain(self) -> bool:
        """Whether shorter prompts wait for which the memory holds half as many slots again: then the slots drain."""
        cache = self.model.cache
        if cache.slots >= self.max_batch:
            return False
        with self._wake:
            waiting = [*self._active, *list(self._queue)[: self.max_batch]]
        longest = max((sequence.need for sequence in waiting), default=self._longest)
        return 2 * min(self.max_batch, cache.budget_tokens // longest) >= 3 * cache.slots

    def _turn_away(self) -> None:
        """Lets those who wait for a slot go without an answer: the run stops."""
        with self._wake:
            waiting, self._queue = self._queue, deque()
        for sequence in waiting:
            sequence.future.set_result(sequence.done)

    def _reserve(self, places: int, held: int) -> None:
        """Makes the slots at least so long; the first ``held`` keep what they hold."""
        cache = self.model.cache
        if places > cache.capacity:
            cache.grow(min(places, cache.budget_tokens // cache.slots), in_use=held)

    def _step(self) -> None:
        active, begun = self._active, time.monotonic()
        longest = max(sequence.length for sequence in active) + 1
        if longest > self.model.cache.capacity:
            self._reserve(longest + GROWTH, len(active))
        logits = self.model.decode([s.tokens[-1] for s in active], [s.length for s in active])
        self.steps += 1
        self._take(logits, list(active))
        self.decode_seconds += time.monotonic() - begun

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
            end = answer_end(text, sequence.prompt["num_qas"])
            if end is not None:
                self._finish(sequence, FinishReason.STOP, text[:end])
                return
            if runs_in_circles(sequence.tokens, text):
                self._finish(sequence, FinishReason.REPETITION, text)
                return
        if full:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: _Sequence, reason: FinishReason, text: str | None = None) -> None:
        """Answers a sequence; then it begins another attempt, or frees its slot."""
        seconds = time.monotonic() - sequence.begun
        completion = complete(
            sequence.prompt,
            self._text(sequence) if text is None else text,
            output_tokens=len(sequence.tokens),
            finish_reason=reason,
            seconds=seconds,
            prefill_seconds=sequence.prefill_seconds,
            began=time.time() - seconds,
            worker=self.name,
        )
        sequence.done.append(completion)
        again = self.next_attempt(sequence.prompt, completion)
        if again is not None and sequence.first_logits is not None:
            sequence.prompt, sequence.draws, sequence.tokens = again, self._draws(again), []
            sequence.begun, sequence.prefill_seconds = time.monotonic(), 0.0
            self._take(sequence.first_logits[None].clone(), [sequence])
            return
        self._free(sequence)
        sequence.future.set_result(sequence.done)

    def _free(self, sequence: _Sequence) -> None:
        """Takes a sequence out; the last active one moves to its slot, so that slots stay dense."""
        slot, last = self._active.index(sequence), len(self._active) - 1
        if slot != last:
            # One place more than its length: its newest token may be in the cache without having been drawn from.
            self.model.cache.move(last, slot, min(self._active[last].length + 1, self.model.cache.capacity))
            self._active[slot] = self._active[last]
        self._active.pop()
        self._since_shrink += 1

    def _text(self, sequence: _Sequence) -> str:
        return sequence.prompt["opening"] + self.model.tokenizer.decode(sequence.tokens)

    def _shrink(self, error: BaseException) -> None:
        """Half as many slots after running out of memory; alone, the sequence is given up."""
        flying, self._active, self._since_shrink = self._active, [], 0
        self.model.release()
        if len(flying) <= 1:
            for sequence in flying:
                failure = Failure.of(RejectReason.ENGINE_ERROR, f"out of memory: {error}")
                sequence.future.set_result([*sequence.done, complete(sequence.prompt, failure=failure)])
            return
        self.max_batch = max(1, len(flying) // 2)
        for sequence in flying:
            sequence.tokens, sequence.draws, sequence.first_logits = [], self._draws(sequence.prompt), None
        with self._wake:
            self._queue.extendleft(reversed(flying))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory: the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
