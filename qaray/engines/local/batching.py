"""Continuous batching: slots decode together, and a slot that becomes free takes the next prompt of the queue."""

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
from qaray.config import ConfigError
from qaray.engines.attempts import stream_seed, unanswerable
from qaray.engines.endings import is_repetitive
from qaray.engines.local.causal_lm import CausalLM
from qaray.engines.local.cpu import compute_on
from qaray.engines.local.sampling import NOT_FINITE, RandomStream, Sampling, not_finite, sample
from qaray.engines.pool import worker_name
from qaray.models.loading import is_out_of_memory
from qaray.run.stopping import StopCheck
from qaray.schema import Completion, Failure, FinishReason, Prompt, RejectReason, complete

POLL_TOKENS = 16  # tokens between checks of a sequence's text; twice as many with each doubling of DENSE_TOKENS
DENSE_TOKENS = 1024  # so that all checks of a long answer take time in proportion to its length
ROUND = 64  # slot lengths are multiples of this
RECOVERY = 64  # answers since the last out-of-memory error after which the slots may double again
MOST_UNUSABLE = 16  # prompts in a row without finite logits that end the run
GROWTH = 128  # positions by which slots grow; each growth copies the cache


@dataclass(eq=False)
class _Sequence:
    """A prompt in a slot. The slot number is its index in the list of active sequences."""

    prompt: Prompt
    future: Future[list[Completion]]
    draws: RandomStream
    begun: float = 0.0  # start of this attempt, seconds of the monotonic clock
    prefill_seconds: float = 0.0  # of this attempt; 0 if the prompt was cached
    tokens: list[int] = field(default_factory=list)
    done: list[Completion] = field(default_factory=list)  # completions of earlier attempts
    first_logits: torch.Tensor | None = None  # [V], after the prompt; later attempts start from them

    @property
    def length(self) -> int:
        """Cache positions filled: the newest token is not in the cache yet."""
        return len(self.prompt["token_ids"]) + len(self.tokens) - 1

    @property
    def capacity(self) -> int:
        """Cache positions for the prompt and the beginning of the answer."""
        return min(len(self.prompt["token_ids"]) + GROWTH, self.need)

    @property
    def need(self) -> int:
        """Maximum cache positions of the sequence, a multiple of ROUND."""
        tokens = len(self.prompt["token_ids"]) + self.prompt["max_tokens"]
        return -(-tokens // ROUND) * ROUND


class ContinuousBatcher:
    """Answers prompts submitted at any time, many concurrently. One thread runs the model.

    An out-of-memory error halves the number of slots; the sequences in flight restart with their own random streams,
    so their text does not change. A prompt that does not fit even alone is answered with an error.

    ``next_attempt`` returns the prompt of another attempt, or None. The attempt starts immediately in the same slot,
    where the prompt is already cached.
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
        self.max_batch = self.most = max_batch  # maximum slots; max_batch is halved when memory runs out
        self.steps = 0  # decoding steps so far
        self.decoded_tokens = 0
        self.prefilled_tokens = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self._queue: deque[_Sequence] = deque()
        self._active: list[_Sequence] = []
        self._unusable = 0  # prompts in a row whose logits are not finite
        self._since_shrink = 0  # answers since the last out-of-memory error
        self._longest = 0  # positions that any slot may need
        self._threads = torch.get_num_threads()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        """Future of the prompt's completions, one per attempt; an empty list if the run stops first.

        A prompt with a failure, or without room for an answer, is completed immediately. Raises RuntimeError after the
        batcher has failed or is closed.
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
        """Completions of ``prompts`` in order, with all attempts of a prompt together. Blocks until all are done."""
        with self._wake:  # all are queued before the slots are allocated
            futures = [self.submit(prompt) for prompt in prompts]
        return [completion for future in futures for completion in future.result()]

    def close(self) -> None:
        """Waits for all submitted prompts and ends the thread: Python aborts if the thread still runs at exit."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread:
            self._thread.join()

    def figures(self) -> dict[str, float]:
        """Queue length, active sequences, and totals of steps, seconds and tokens."""
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
        """Sets an error of the model on all pending futures; the batcher cannot continue."""
        with self._wake:
            self._failure = error
            waiting = [*self._active, *self._queue]
            self._active, self._queue = [], deque()
        for sequence in waiting:
            sequence.future.set_exception(error)

    def _admit(self) -> None:
        """Fills free slots from the queue. When no slot is in use, their number is set to fit the waiting prompts."""
        cache = self.model.cache
        if self._queue and self.should_stop():
            self._turn_away()
        if not self._active:
            if self._since_shrink >= RECOVERY:  # memory may be free again
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
        """Puts the next prompt into the next slot; None if the queue is empty or the prompt does not fit."""
        cache = self.model.cache
        free = max(0, min(cache.slots, self.max_batch) - len(self._active))
        with self._wake:
            arrivals = list(takewhile(self._has_room, islice(self._queue, free)))
            if not arrivals:
                return None
            self._queue.popleft()
        num_active = len(self._active)
        self._active.append(arrivals[0])
        # Grow once for all arrivals: slots that grow later hold more to copy.
        self._longest = max(self._longest, *(min(each.need, cache.budget_tokens) for each in arrivals))
        self._reserve(max(self._capacity(each) for each in arrivals), num_active)
        return arrivals[0]

    def _read(self, sequence: _Sequence) -> None:
        """Prefills the newest active sequence."""
        sequence.begun = time.monotonic()
        ids = sequence.prompt["token_ids"]
        sequence.first_logits = self.model.prefill(len(self._active) - 1, ids)
        sequence.prefill_seconds = time.monotonic() - sequence.begun
        self.prefill_seconds += sequence.prefill_seconds
        self.prefilled_tokens += len(ids)

    def _has_room(self, sequence: _Sequence) -> bool:
        """Whether every slot can grow to the length that the sequence needs, capped at the whole budget."""
        cache = self.model.cache
        return min(sequence.need, cache.budget_tokens) * cache.slots <= cache.budget_tokens

    def _capacity(self, sequence: _Sequence) -> int:
        """Initial positions of the sequence's slot. Only CPUs benefit from slots no longer than their contents."""
        return sequence.capacity if self.model.device.type == "cpu" else self._longest

    def _would_gain(self) -> bool:
        """Whether to drain the slots, because memory holds at least 1.5 times as many for the prompts now waiting."""
        cache = self.model.cache
        if cache.slots >= self.max_batch:
            return False
        with self._wake:
            waiting = [*self._active, *list(self._queue)[: self.max_batch]]
        longest = max((sequence.need for sequence in waiting), default=self._longest)
        return 2 * min(self.max_batch, cache.budget_tokens // longest) >= 3 * cache.slots

    def _turn_away(self) -> None:
        """Ends queued prompts with the completions they have so far, since the run stops."""
        with self._wake:
            waiting, self._queue = self._queue, deque()
        for sequence in waiting:
            sequence.future.set_result(sequence.done)

    def _reserve(self, places: int, held: int) -> None:
        """Grows the slots to at least ``places`` positions; the first ``held`` slots keep their contents."""
        cache = self.model.cache
        if places > cache.capacity:
            cache.grow(min(places, cache.budget_tokens // cache.slots), in_use=held)

    def _step(self) -> None:
        active, start = self._active, time.monotonic()
        longest = max(sequence.length for sequence in active) + 1
        if longest > self.model.cache.capacity:
            self._reserve(longest + GROWTH, len(active))
        logits = self.model.decode([s.tokens[-1] for s in active], [s.length for s in active])
        self.steps += 1
        self._take(logits, list(active))
        self.decode_seconds += time.monotonic() - start

    def _take(self, logits: torch.Tensor, sequences: list[_Sequence]) -> None:
        """Samples the next token of each sequence and finishes those that are done. ``logits`` [B, V]."""
        if any(len(s.tokens) < self.sampling.min_tokens for s in sequences):
            for row, sequence in enumerate(sequences):
                if len(sequence.tokens) < self.sampling.min_tokens:
                    logits[row, list(self.model.eos_ids)] = float("-inf")
        unusable = not_finite(logits).tolist()
        if any(unusable):
            usable = [row for row, is_unusable in enumerate(unusable) if not is_unusable]
            for sequence, is_unusable in zip(sequences, unusable, strict=True):
                if is_unusable:
                    self._give_up(sequence)
            logits, sequences = logits[usable], [sequences[row] for row in usable]
            if not sequences:
                return
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
        """Finishes a sequence at its token limit, at the end of the answer grammar, or in a repetition loop."""
        num_tokens = len(sequence.tokens)
        full = num_tokens >= sequence.prompt["max_tokens"]
        if (full or is_polled(num_tokens)) and num_tokens > self.sampling.min_tokens:
            text = self._text(sequence)
            end = answer_end(text, sequence.prompt["num_qas"])
            if end is not None:
                self._finish(sequence, FinishReason.STOP, text[:end])
                return
            if is_repetitive(sequence.tokens, text):
                self._finish(sequence, FinishReason.REPETITION, text)
                return
        if full:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: _Sequence, reason: FinishReason, text: str | None = None) -> None:
        """Completes an attempt, then starts the next one in the same slot or frees the slot."""
        self._unusable = 0
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
        retry = self.next_attempt(sequence.prompt, completion)
        if retry is not None and sequence.first_logits is not None:
            sequence.prompt, sequence.draws, sequence.tokens = retry, self._draws(retry), []
            sequence.begun, sequence.prefill_seconds = time.monotonic(), 0.0
            self._take(sequence.first_logits[None].clone(), [sequence])
            return
        self._free(sequence)
        sequence.future.set_result(sequence.done)

    def _give_up(self, sequence: _Sequence) -> None:
        """Ends a prompt whose logits are not finite. Raises ConfigError if the model gives nothing else."""
        self._unusable += 1
        if self._unusable >= MOST_UNUSABLE:
            raise ConfigError(f"model {self.model.name}: {NOT_FINITE} for {self._unusable} prompts in a row")
        failure = Failure.of(RejectReason.ENGINE_ERROR, f"model {self.model.name}: {NOT_FINITE}")
        self._free(sequence)
        sequence.future.set_result([*sequence.done, complete(sequence.prompt, failure=failure)])

    def _free(self, sequence: _Sequence) -> None:
        """Removes a sequence; the last active one moves to its slot, so that active slots stay contiguous."""
        slot, last = self._active.index(sequence), len(self._active) - 1
        if slot != last:
            # One position more than its length: its newest token may already be cached without being sampled from.
            self.model.cache.move(last, slot, min(self._active[last].length + 1, self.model.cache.capacity))
            self._active[slot] = self._active[last]
        self._active.pop()
        self._since_shrink += 1

    def _text(self, sequence: _Sequence) -> str:
        return sequence.prompt["opening"] + self.model.tokenizer.decode(sequence.tokens)

    def _shrink(self, error: BaseException) -> None:
        """Halves the slots after an out-of-memory error; a sequence that ran alone fails."""
        in_flight, self._active, self._since_shrink = self._active, [], 0
        self.model.release()
        if len(in_flight) <= 1:
            for sequence in in_flight:
                failure = Failure.of(RejectReason.ENGINE_ERROR, f"out of memory: {error}")
                sequence.future.set_result([*sequence.done, complete(sequence.prompt, failure=failure)])
            return
        self.max_batch = max(1, len(in_flight) // 2)
        for sequence in in_flight:
            sequence.tokens, sequence.draws, sequence.first_logits = [], self._draws(sequence.prompt), None
        with self._wake:
            self._queue.extendleft(reversed(in_flight))


def is_polled(num_tokens: int) -> bool:
    """Whether the text of a sequence is checked at this length."""
    doublings = max(1, num_tokens // DENSE_TOKENS).bit_length() - 1
    return num_tokens % (POLL_TOKENS << doublings) == 0
