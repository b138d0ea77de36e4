"""Attempts of a prompt: their seeds, when another one is owed, and how an engine of single requests makes them."""

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
    """Seed of the random stream of one (seed, doi, window, attempt), 64 bits."""
    digest = hashlib.sha256(f"{seed}\0{window}\0{attempt}\0{doi}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def next_attempt(prompt: Prompt, completion: Completion, max_attempts: int) -> Prompt | None:
    """The prompt to ask again, or None if its answer will do or its attempts are spent."""
    if completion["reason"] is not None or not falls_short(parsed(completion)) or prompt["attempt"] >= max_attempts:
        return None
    return Prompt(**{**prompt, "attempt": prompt["attempt"] + 1})


def falls_short(row: Parsed) -> bool:
    return len(row["pairs"]) < row["num_qas"]


def attempts(config: GenerateConfig) -> int:
    """Times a prompt can be asked with hope of another answer: echo and greedy decoding repeat themselves."""
    repeats = config.engine == "echo" or config.sampling.temperature == 0
    return 1 if repeats else config.asking.max_attempts


Once = Callable[[Prompt], Awaitable[Completion | None]]  # None: no answer was had, and the prompt is owed one


def unanswerable(prompt: Prompt) -> Failure | None:
    """Why an engine need not ask this prompt."""
    if failure := failure_of(prompt):
        return failure
    return Failure.of(RejectReason.OVER_LENGTH, "no tokens left for the answer") if prompt["max_tokens"] < 1 else None


async def attempts_of(prompt: Prompt, once: Once, max_attempts: int, should_stop: StopCheck) -> list[Completion]:
    """The answers to a prompt, one an attempt, until it has its pairs. None once the run stops."""
    if failure := unanswerable(prompt):
        return [complete(prompt, failure=failure)]
    done: list[Completion] = []
    again: Prompt | None = prompt
    while again is not None and not should_stop():
        answer = await once(again)
        if answer is None:
            break
        done.append(answer)
        again = next_attempt(again, answer, max_attempts)
    return done


async def as_they_end(tasks: Sequence[Awaitable[Any]]) -> AsyncIterator[Any]:
    """Results of awaitables that run together, the first to end first."""
    for each in asyncio.as_completed(list(tasks)):
        yield await each


def unpacked(rows: pa.Table) -> pa.Table:
    """Rows with a list of ``answers`` → the completions."""
    answers = rows["answers"].to_pylist() if rows.num_rows else []
    return table([answer for own in answers for answer in own or []], COMPLETION_SCHEMA)


def select(row: Mapping[str, Any], columns: Iterable[str]) -> Any:
    """The prompt, or the request for scores, whose ``columns`` a row holds: without numpy's types."""
    return {name: value.tolist() if hasattr(value := row[name], "tolist") else value for name in columns}
