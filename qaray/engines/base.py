"""The engine interface: two verbs over datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qaray.asking.grammar import parse_answer
from qaray.schema import Completion, Parsed, identified

if TYPE_CHECKING:
    from ray.data import Dataset


class Engine(Protocol):
    """What turns prompts into text. Implementations are cheap to build; models are loaded by their actors."""

    def describe(self) -> str:
        """One line for the user: what runs where, and what attention runs on. Ray must be connected."""
        ...

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        """Dataset[Prompt] → Dataset[Completion] (COMPLETION_SCHEMA).

        ``expected``: prompts that there will be, None where that is not known. They go to the actors in small blocks:
        what is written together, and lost together if an actor dies.

        At least one row for each prompt, keyed (doi, window, attempt), in any order; a prompt whose answer has fewer
        pairs than asked for may be asked again at once, up to ``max_attempts``, each attempt a row of its own. A prompt
        with a failure comes back with it. Prompts that are left out because the run stops are simply missing.
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
    pairs = identified(result.pairs, completion["doi"], completion["window"], completion["attempt"])
    return Parsed(**completion, status=str(result.status), pairs=pairs)
