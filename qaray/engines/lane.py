"""A lane of continuous batching: slots of one cache that decode together, filled from a queue. One thread runs it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from qaray.engines.base import StopCheck, error_text, stream_seed, worker_name
from qaray.engines.causal_lm import CausalLM
from qaray.engines.endings import runs_in_circles
from qaray.engines.sampling import RandomStream, Sampling, sample
from qaray.prompts import answer_is_complete
from qaray.schema import Completion, FinishReason, Prompt, RejectReason, complete

LOOK_EVERY = 16  # tokens between two looks at the text of a sequence
ROUND = 64  # slot lengths are multiples of this
RECOVERY = 64  # answers after which the number of slots may double again
GROWTH = 128  # places by which slots grow: a copy of the cache every so many steps

NextAttempt = Callable[[Prompt, Completion], Prompt | None]


@dataclass(eq=False)
class Sequence:
    """A prompt that waits, or is in a slot. Its slot is its place in its lane's list of active sequences."""

    prompt: Prompt
    future: Future[list[Completion]]
    draws: RandomStream = field(init=False)
    begun: float = 0.0  # seconds of the monotonic clock
    prefill_seconds: float = 0.0  # of this attempt: none where the prompt was in the cache
    tokens: list[int] = field(default_factory=list)
    done: list[Completion] = field(default_factory=list)  # answers of earlier attempts
    first_logits: torch.Tensor | None = None  # [V], after the prompt: another attempt starts from them

    def begin(self, seed: int) -> None:
        """An attempt starts, with random numbers of its own."""
        prompt = self.prompt
        self.draws = RandomStream(stream_seed(seed, prompt["doi"], prompt["window"], prompt["attempt"]))
        self.begun, self.prefill_seconds, self.tokens = time.monotonic(), 0.0, []

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


class Queue:
    """What waits for a slot of any lane. ``changed`` guards all of it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[Sequence] = deque()
        self.lanes: list[Lane] = []
        self.failure: BaseException | None = None
        self.closed = False

    def put(self, prompt: Prompt, future: Future[list[Completion]]) -> None:
        """Raises RuntimeError once a lane has failed, or the queue is closed."""
        with self.changed:
            if self.failure or self.closed:
                raise RuntimeError("the engine has stopped") from self.failure
            self.waiting.append(Sequence(prompt, future))
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    @property
    def busy(self) -> int:
        """Lanes with something in hand, or about to have it."""
        with self.changed:
            working = sum(bool(lane.active) for lane in self.lanes)
            return min(len(self.lanes), working + len(self.waiting))


class Lane:
    """Slots of one cache. A sequence begins as soon as a slot is free, while the others go on.

    Out of memory halves the number of slots; what was in flight starts again from its own random stream, so that its
    text is the same. A prompt that does not even fit alone is answered with an error.
    """

    def __init__(
        self,
        model: CausalLM,
        sampling: Sampling,
        max_batch: int,
        next_attempt: NextAttempt,
        should_stop: StopCheck,
        queue: Queue,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.name = worker_name()
        self.next_attempt, self.should_stop, self.queue = next_attempt, should_stop, queue
        self.max_batch = self.most = max_batch  # slots at most; halved when memory runs out
        self.steps = 0  # decoding steps so far
        self.decoded_tokens = 0
        self.prefilled_tokens = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self.active: list[Sequence] = []
        self._all_threads, self._threads = torch.get_num_threads(), 0  # of the process; of this lane, once it works
        self._retired = False
        self._since_shrink = 0  # answers since memory ran out
        self._longest = 0  # places that every slot may come to need
        queue.lanes.append(self)

    @torch.inference_mode()
    def run(self) -> None:
        """Works until the queue is closed and empty. An error of the model goes to all who wait: the actor is of no
        more use."""
        try:
            while self._has_work():
                try:
                    self._admit()
                    if self.active:
                        self._step()
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._shrink(error)
        except BaseException as error:
            with self.queue.changed:
                self.queue.failure = error
                waiting = [*self.active, *self.queue.waiting]
                self.active = []
                self.queue.waiting.clear()
                self.queue.changed.notify_all()
            for sequence in waiting:
                sequence.future.set_exception(error)

    def _has_work(self) -> bool:
        """Waits for it; False once there can be none any more."""
        if self.active:
            return True
        if self._retired:
            return False
        queue = self.queue
        with queue.changed:
            queue.changed.wait_for(lambda: queue.waiting or queue.closed or queue.failure)
            return bool(queue.waiting)

    def _take_share(self) -> None:
        """Computes on this lane's share of the CPU's threads from here on: a lane that works alone has all of them."""
        threads = max(1, self._all_threads // self.queue.busy)
        if threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads

    def _admit(self) -> None:
        """Fills free slots from the queue. The number of slots is set by what waits when none is in use."""
        cache = self.model.cache
        if self.queue.waiting and self.should_stop():
            self._turn_away()
        if not self.active:
            if self._since_shrink >= RECOVERY:  # what was too much then need not be now
                self.max_batch, self._since_shrink = min(self.most, 2 * self.max_batch), 0
            waiting = self._next_in_line()
            if not waiting:
                return
            self._longest = min(max(sequence.need for sequence in waiting), cache.budget_tokens)
            slots = max(1, min(self.max_batch, cache.budget_tokens // self._longest))
            cache.shape(slots, min(self._capacity(waiting[0]), cache.budget_tokens // slots))
        if self._would_gain():
            return
        while len(self.active) < min(cache.slots, self.max_batch):
            with self.queue.changed:
                if not self.queue.waiting or not self._has_room(self.queue.waiting[0]):
                    return
                sequence = self.queue.waiting.popleft()
                self.active.append(sequence)
            self._longest = max(self._longest, min(sequence.need, cache.budget_tokens))
            self._reserve(self._capacity(sequence))
            sequence.begin(self.sampling.seed)
            logits = self._prefill(len(self.active) - 1, sequence.prompt["token_ids"])
            self.prefilled_tokens += len(sequence.prompt["token_ids"])
            sequence.prefill_seconds = time.monotonic() - sequence.begun
            self.prefill_seconds += sequence.prefill_seconds
            sequence.first_logits = logits
            self._take(logits[None].clone(), [sequence])

    def _prefill(self, slot: int, ids: list[int]) -> torch.Tensor:
        """Logits after a prompt that is read into a slot, [V]."""
        for first in range(0, len(ids), self.model.chunk):
            self._take_share()
            logits = self.model.prefill(slot, ids[first : first + self.model.chunk], first)
        return logits

    def _next_in_line(self) -> list[Sequence]:
        with self.queue.changed:
            return list(self.queue.waiting)[: self.max_batch]

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether every slot may become as long as the sequence needs: more than all of the memory is given to none."""
        cache = self.model.cache
        return min(sequence.need, cache.budget_tokens) * cache.slots <= cache.budget_tokens

    def _capacity(self, sequence: Sequence) -> int:
        """Places of a slot when the sequence comes: only CPUs gain from slots no longer than what they hold."""
        return sequence.capacity if self.model.device.type == "cpu" else self._longest

    def _would_gain(self) -> bool:
        """Whether shorter prompts wait for which the memory holds half as many slots again: then the slots drain."""
        cache = self.model.cache
        if cache.slots >= self.max_batch:
            return False
        longest = max((sequence.need for sequence in [*self.active, *self._next_in_line()]), default=self._longest)
        return 2 * min(self.max_batch, cache.budget_tokens // longest) >= 3 * cache.slots

    def _turn_away(self) -> None:
        """Lets those who wait for a slot go without an answer: the run stops."""
        with self.queue.changed:
            waiting = list(self.queue.waiting)
            self.queue.waiting.clear()
        for sequence in waiting:
            sequence.future.set_result(sequence.done)

    def _reserve(self, places: int) -> None:
        """Makes the slots at least so long."""
        cache = self.model.cache
        if places > cache.capacity:
            cache.grow(min(places, cache.budget_tokens // cache.slots), in_use=len(self.active))

    def _step(self) -> None:
        active, begun = self.active, time.monotonic()
        self._take_share()
        longest = max(sequence.length for sequence in active) + 1
        if longest > self.model.cache.capacity:
            self._reserve(longest + GROWTH)
        logits = self.model.decode([s.tokens[-1] for s in active], [s.length for s in active])
        self.steps += 1
        self._take(logits, list(active))
        self.decode_seconds += time.monotonic() - begun

    def _take(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
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

    def _look(self, sequence: Sequence) -> None:
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

    def _finish(self, sequence: Sequence, reason: FinishReason, text: str | None = None) -> None:
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
            sequence.prompt = again
            sequence.begin(self.sampling.seed)
            self._take(sequence.first_logits[None].clone(), [sequence])
            return
        self._free(sequence)
        sequence.future.set_result(sequence.done)

    def _free(self, sequence: Sequence) -> None:
        """Takes a sequence out; the last active one moves to its slot, so that slots stay dense."""
        slot, last = self.active.index(sequence), len(self.active) - 1
        if slot != last:
            # One place more than its length: its newest token may be in the cache without having been drawn from.
            self.model.cache.move(last, slot, min(self.active[last].length + 1, self.model.cache.capacity))
            self.active[slot] = self.active[last]
        self.active.pop()
        self._since_shrink += 1

    def _text(self, sequence: Sequence) -> str:
        return sequence.prompt["opening"] + self.model.tokenizer.decode(sequence.tokens)

    def _shrink(self, error: BaseException) -> None:
        """Half as many slots after running out of memory. A lane with one sequence leaves the memory to the others; the
        last lane gives its sequence up."""
        flying, self.active, self._since_shrink = self.active, [], 0
        self.model.release()
        if len(flying) <= 1:
            self._retired = self._leave()
        if len(flying) <= 1 and not self._retired:
            for sequence in flying:
                failure = error_text(RejectReason.ENGINE_ERROR, f"out of memory: {error}")
                sequence.future.set_result([*sequence.done, complete(sequence.prompt, error=failure)])
            return
        self.max_batch = max(1, len(flying) // 2)
        for sequence in flying:
            sequence.first_logits = None
        with self.queue.changed:
            self.queue.waiting.extendleft(reversed(flying))
            self.queue.changed.notify_all()

    def _leave(self) -> bool:
        """Takes this lane out of the queue's unless it is the last one."""
        with self.queue.changed:
            if len(self.queue.lanes) == 1:
                return False
            self.queue.lanes.remove(self)
            return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory: the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
