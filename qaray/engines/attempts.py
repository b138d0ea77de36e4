"""Attempts at a prompt: random seeds, when to retry, and the retry loop of engines that send single requests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from qaray.config import GenerateConfig
from qaray.engines.base import parsed
from qaray.run.stopping import StopCheck
from qaray.schema import (
    COMPLETION_SCHEMA,
    Completion,
    Failure,
    Parsed,
    Prompt,
    RejectReason,
    complete,
    failure_of,
    table,
)


def stream_seed(seed: int, doi: str, window: int, attempt: int) -> int:
    """64-bit random seed derived from (seed, doi, window, attempt)."""
    digest = hashlib.sha256(f"{seed}\0{window}\0{attempt}\0{doi}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def next_attempt(prompt: Prompt, completion: Completion, max_attempts: int) -> Prompt | None:
    """The prompt of the next attempt; None if the completion failed, has all its pairs, or was the last attempt."""
    if completion["reason"] is not None or not falls_short(parsed(completion)) or prompt["attempt"] >= max_attempts:
        return None
    return Prompt(**{**prompt, "attempt": prompt["attempt"] + 1})


def falls_short(row: Parsed) -> bool:
    """Whether the answer has fewer pairs than requested."""
    return len(row["pairs"]) < row["num_qas"]


def attempts(config: GenerateConfig) -> int:
    """Attempts per prompt: ``max_attempts``, but 1 for echo and greedy decoding, which always give the same answer."""
    repeats = config.engine == "echo" or config.sampling.temperature == 0
    return 1 if repeats else config.asking.max_attempts


Once = Callable[[Prompt], Awaitable[Completion | None]]  # None: the request got no answer, and the prompt stays pending


def unanswerable(prompt: Prompt) -> Failure | None:
    """Why a prompt cannot be answered: its own failure, or no tokens left for the answer. None if it can be."""
    if failure := failure_of(prompt):
        return failure
    return Failure.of(RejectReason.OVER_LENGTH, "no tokens left for the answer") if prompt["max_tokens"] < 1 else None


async def attempts_of(prompt: Prompt, once: Once, max_attempts: int, should_stop: StopCheck) -> list[Completion]:
    """Attempts a prompt up to ``max_attempts`` times, until it has all its pairs; returns a completion per attempt.

    Ends early, possibly with an empty list, if the run stops or a request gets no answer.
    """
    if failure := unanswerable(prompt):
        return [complete(prompt, failure=failure)]
    completions: list[Completion] = []
    current: Prompt | None = prompt
    while current is not None and not should_stop():
        completion = await once(current)
        if completion is None:
            break
        completions.append(completion)
        current = next_attempt(current, completion, max_attempts)
    return completions


async def as_completed(tasks: Sequence[Awaitable[Any]]) -> AsyncIterator[Any]:
    """Yields the results of concurrent awaitables as they complete."""
    for each in asyncio.as_completed(list(tasks)):
        yield await each


def unpacked(rows: pa.Table) -> pa.Table:
    """Flattens rows with a list of ``answers`` into a table of completions (COMPLETION_SCHEMA)."""
    answers = rows["answers"].to_pylist() if rows.num_rows else []
    return table([answer for row_answers in answers for answer in row_answers or []], COMPLETION_SCHEMA)


def select(row: Mapping[str, Any], columns: Iterable[str]) -> Any:
    """The ``columns`` of a row as a prompt or score request, with NumPy values converted to Python."""
    return {name: value.tolist() if hasattr(value := row[name], "tolist") else value for name in columns}
