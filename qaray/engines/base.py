"""The engine interface: two verbs over datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qaray.asking.parse import parse_answer
from qaray.schema import Completion, Parsed, RejectReason

if TYPE_CHECKING:
    from ray.data import Dataset


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


def parsed(completion: Completion) -> Parsed:
    """The completion with its pairs."""
    result = parse_answer(completion["output"], completion["num_qas"], completion["finish_reason"])
    return Parsed(**completion, status=str(result.status), pairs=result.pairs)


def error_text(reason: RejectReason, error: BaseException | str) -> str:
    """The error column of a row: reason and one line."""
    detail = str(error).strip().split("\n")[0][:500] or type(error).__name__
    return f"{reason}: {detail}"


def split_error(error: str) -> tuple[str, str]:
    """(reason, detail) of an error column."""
    reason, _, detail = error.partition(": ")
    return reason, detail
