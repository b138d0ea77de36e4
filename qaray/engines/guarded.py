"""Guards engines against rows that kill their process; such rows are answered with a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from qaray.run.tries import GIVEN_UP, Guard, OnRows, digest
from qaray.schema import (
    COMPLETION_SCHEMA,
    Completion,
    Failure,
    Prompt,
    RejectReason,
    complete,
    failure_of,
    scored,
    table,
)

TOO_MANY_DEATHS = Failure(str(RejectReason.PROCESS_KILLED), GIVEN_UP)  # failure of a row that is given up


def prompt_key(prompt: Mapping[str, Any]) -> str:
    """Key of a prompt in the notes of ``qaray.run.tries``."""
    return f"{prompt['doi']}\0{prompt['window']}\0{prompt['attempt']}"


def request_key(request: Mapping[str, Any]) -> str:
    """Key of a score request in the notes of ``qaray.run.tries``."""
    return digest([request["prefix"], *request["suffixes"]])


def given_up(prompt: Prompt) -> Completion:
    """The failed completion of a prompt that killed its processes."""
    return complete(prompt, failure=failure_of(prompt) or TOO_MANY_DEATHS)


def guarded_answers(guard: Guard, prompts: pa.Table, answers: OnRows) -> pa.Table:
    """Completions of ``prompts`` by ``answers``; prompts that are given up get a failure."""
    keys = [prompt_key(row) for row in prompts.select(["doi", "window", "attempt"]).to_pylist()]

    def give_up(block: pa.Table) -> pa.Table:
        return table([given_up(prompt) for prompt in block.to_pylist()], COMPLETION_SCHEMA)

    return guard.run(keys, prompts, answers, give_up)


def guarded_scores(guard: Guard, requests: pa.Table, scores: OnRows) -> pa.Table:
    """Scores of ``requests`` by ``scores``; requests that are given up get a failure."""
    keys = [request_key(row) for row in requests.select(["prefix", "suffixes"]).to_pylist()]

    def give_up(block: pa.Table) -> pa.Table:
        return scored(block, [None] * block.num_rows, [TOO_MANY_DEATHS] * block.num_rows)

    return guard.run(keys, requests, scores, give_up)
