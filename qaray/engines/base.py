"""The engine interface: two verbs over datasets, and top-up while the engine is warm."""

from __future__ import annotations

import hashlib
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from qaray.config import GenerateConfig
from qaray.parse import parse_answer
from qaray.schema import (
    COMPLETION_SCHEMA,
    Completion,
    Parsed,
    Prompt,
    RejectReason,
    complete,
    scored,
    table,
)
from qaray.tries import GIVEN_UP, Guard, OnRows, digest

if TYPE_CHECKING:
    from ray.data import Dataset

TOO_MANY_DEATHS = f"{RejectReason.PROCESS_KILLED}: {GIVEN_UP}"  # the error of a row that is given up
StopCheck = Callable[[], bool]  # True once the run is to end after the work in hand
# What of a Prompt goes to an engine that gets its tokens: all but the text.
PROMPT_COLUMNS = (
    "doi", "shard", "row", "window", "windows", "attempt", "num_qas", "start", "end", "prompt_tokens",
    "truncated_tokens", "token_ids", "opening", "max_tokens", "error",
)  # fmt: skip


class Engine(Protocol):
    """What turns prompts into text. Implementations are cheap to build; models are loaded by their actors."""

    def describe(self) -> str:
        """One line for the user: what runs where, and what attention runs on. Ray must be connected."""
        ...

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        """Dataset[Prompt] → Dataset[Completion] (PARSED_SCHEMA without its last two columns).

        ``expected``: prompts that there will be, None where that is not known. They go to the actors in small blocks:
        what is written together, and lost together if an actor dies.

        At least one row for each prompt, keyed (doi, window, attempt), in any order; a prompt whose answer has fewer
        pairs than asked for may be asked again at once, up to ``max_attempts``, each attempt a row of its own. A prompt
        with an error comes back with it. Prompts that are left out because the run stops are simply missing.
        """
        ...

    def score(self, requests: Dataset) -> Dataset:
        """Dataset[ScoreRequest] → Dataset[ScoreResult], further columns untouched.

        A row for each request, in any order. Requests that are left out because the run stops are simply missing.
        """
        ...


def stream_seed(seed: int, doi: str, window: int, attempt: int) -> int:
    """Seed of the random stream of one (seed, doi, window, attempt), 64 bits."""
    digest = hashlib.sha256(f"{seed}\0{window}\0{attempt}\0{doi}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def parsed(completion: Completion) -> Parsed:
    """The completion with its pairs."""
    result = parse_answer(completion["output"], completion["num_qas"], completion["finish_reason"])
    return Parsed(**completion, status=str(result.status), pairs=result.pairs)


def next_attempt(prompt: Prompt, completion: Completion, max_attempts: int) -> Prompt | None:
    """The prompt to ask again, or None if its answer will do or its attempts are spent."""
    if completion["error"] is not None or not falls_short(parsed(completion)) or prompt["attempt"] >= max_attempts:
        return None
    return Prompt(**{**prompt, "attempt": prompt["attempt"] + 1})


def falls_short(row: Parsed) -> bool:
    return len(row["pairs"]) < row["num_qas"]


def error_text(reason: RejectReason, error: BaseException | str) -> str:
    """The error column of a row: reason and one line."""
    detail = str(error).strip().split("\n")[0][:500] or type(error).__name__
    return f"{reason}: {detail}"


def split_error(error: str) -> tuple[str, str]:
    """(reason, detail) of an error column."""
    reason, _, detail = error.partition(": ")
    return reason, detail


@dataclass(frozen=True)
class Share:
    """What an actor of a pool holds of the prompts."""

    rows: int  # of a block
    calls: int  # blocks that it works on at once
    in_flight: int  # blocks that it holds

    @classmethod
    def of(cls, slots: int, ahead: float, actors: int, expected: int | None, most_rows: int = 64) -> Share:
        """Of an actor with ``slots`` prompts in work: ``ahead`` times as many, in blocks of a quarter of the slots.

        Of ``expected`` prompts no actor holds more at a time than an even share among ``actors``: few would all go to
        the one that happens to be ready first.
        """
        rows = max(1, min(most_rows, slots // 4))
        calls = max(2, math.ceil(ahead * slots / rows))
        if expected is None:
            return cls(rows, calls, calls + 1)
        own = max(1, math.ceil(expected / actors))
        blocks = math.ceil(own / rows)
        return cls(min(rows, math.ceil(own / blocks)), min(calls, blocks), min(calls + 1, blocks))

    def blocks(self, prompts: Dataset) -> Dataset:
        """The prompts in blocks of ``rows``."""
        return prompts.repartition(target_num_rows_per_block=self.rows, strict=True)


def pool(minimum: int, maximum: int, concurrent_calls: int = 1, in_flight: int | None = None) -> Any:
    """An autoscaling actor pool; each actor holds ``in_flight`` blocks, by default one more than the
    ``concurrent_calls`` that it works on at a time."""
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        min_size=minimum,
        max_size=maximum,
        max_tasks_in_flight_per_actor=in_flight or concurrent_calls + 1,
        max_concurrent_calls_per_actor=concurrent_calls,
        enable_true_multi_threading=concurrent_calls > 1,
    )


# Threads would have memory of their own, which goes back to the system when it is freed: see engines/cpu.py.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def actor_resources(cpus: float, gpus: float, labels: Mapping[str, str]) -> dict[str, Any]:
    """What an actor with a model takes, and the labels of its node. Ray Data restarts actors that die and runs their
    blocks again."""
    options: dict[str, Any] = {"num_cpus": cpus, "runtime_env": {"env_vars": ONE_ARENA}}
    if gpus:
        options["num_gpus"] = gpus
    if labels:
        options["label_selector"] = dict(labels)
    return options


def actors_in_words(sizes: tuple[int, int]) -> str:
    """A pool's size for the user."""
    low, high = sizes
    return f"{low} to {high} actors" if high > low else f"{low} actor" + "s" * (low > 1)


def attempts(config: GenerateConfig) -> int:
    """Times a prompt can be asked with hope of another answer: echo and greedy decoding repeat themselves."""
    repeats = config.engine == "echo" or config.temperature == 0
    return 1 if repeats else config.max_attempts


def actor_name() -> str:
    """Names this actor, the same after Ray has started it anew; elsewhere the process."""
    import ray

    return (ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None) or worker_name()


# What stands in for the answers of rows that are given up: see qaray.tries.


def prompt_key(prompt: Mapping[str, Any]) -> str:
    """Names a prompt to the notes of what was tried."""
    return f"{prompt['doi']}\0{prompt['window']}\0{prompt['attempt']}"


def request_key(request: Mapping[str, Any]) -> str:
    """Names a request for scores."""
    return digest([request["prefix"], *request["suffixes"]])


def given_up(prompt: Prompt) -> Completion:
    """The answer to a prompt that killed its processes."""
    return complete(prompt, error=prompt["error"] or TOO_MANY_DEATHS)


def guarded_answers(guard: Guard, prompts: pa.Table, answers: OnRows) -> pa.Table:
    """Completions of ``prompts`` by ``answers``, or of those that are given up."""
    keys = [prompt_key(row) for row in prompts.select(["doi", "window", "attempt"]).to_pylist()]

    def give_up(own: pa.Table) -> pa.Table:
        return table([given_up(prompt) for prompt in own.to_pylist()], COMPLETION_SCHEMA)

    return guard.run(keys, prompts, answers, give_up)


def guarded_scores(guard: Guard, requests: pa.Table, scores: OnRows) -> pa.Table:
    """The same for requests for scores."""
    keys = [request_key(row) for row in requests.select(["prefix", "suffixes"]).to_pylist()]

    def give_up(own: pa.Table) -> pa.Table:
        return scored(own, [None] * own.num_rows, [TOO_MANY_DEATHS] * own.num_rows)

    return guard.run(keys, requests, scores, give_up)


def worker_name() -> str:
    """Names this process in the rows that it writes."""
    return f"{socket.gethostname()}:{os.getpid()}"
