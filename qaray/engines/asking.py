"""A prompt and an engine that answers one request at a time: every attempt of it, while the engine is warm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from qaray.engines.base import StopCheck, next_attempt
from qaray.schema import COMPLETION_SCHEMA, Completion, Prompt, RejectReason, complete, table

Once = Callable[[Prompt], Awaitable[Completion | None]]  # None: no answer was had, and the prompt is owed one


async def attempts_of(prompt: Prompt, once: Once, max_attempts: int, should_stop: StopCheck) -> list[Completion]:
    """The answers to a prompt, one an attempt, until it has its pairs. None once the run stops."""
    if prompt["error"] is not None:
        return [complete(prompt, error=prompt["error"])]
    if prompt["max_tokens"] < 1:
        return [complete(prompt, error=f"{RejectReason.OVER_LENGTH}: no token is left for the answer")]
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


def packed(answers: Sequence[Completion]) -> str:
    """Answers as one value of a row."""
    return json.dumps(list(answers))


def unpacked(rows: pa.Table) -> pa.Table:
    """Rows with packed ``answers`` → the completions."""
    answers = rows["answers"].to_pylist() if rows.num_rows else []
    return table([answer for packed in answers for answer in json.loads(packed)], COMPLETION_SCHEMA)


def taken(row: Mapping[str, Any], columns: Iterable[str]) -> Any:
    """The prompt, or the request for scores, whose ``columns`` a row holds: without numpy's types."""
    return {name: value.tolist() if hasattr(value := row[name], "tolist") else value for name in columns}
