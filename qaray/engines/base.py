"""The engine interface: ``generate`` and ``score`` over datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qaray.asking.grammar import parse_answer
from qaray.schema import Completion, Parsed, identified

if TYPE_CHECKING:
    from ray.data import Dataset


class Engine(Protocol):
    """Generates text and scores choices. Engines are cheap to build; their actors load the models."""

    def describe(self) -> str:
        """One line for the user: devices, actors and attention backend. Ray must be connected."""
        ...

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        """Dataset[Prompt] → Dataset[Completion] (COMPLETION_SCHEMA).

        ``expected`` is the number of prompts, None if unknown. Prompts go to actors in small blocks: a block is written
        as a whole, and lost as a whole if its actor dies.

        Returns at least one row per prompt, keyed (doi, window, attempt), in any order. A prompt whose answer has too
        few pairs may be retried immediately, up to ``max_attempts``; each attempt is a row. A prompt with a failure is
        returned with that failure. Prompts skipped because the run stops are missing.
        """
        ...

    def resume(self, prompt_tokens: int, output_tokens: int) -> None:
        """Tells the engine, before it generates, the tokens of the answers that are saved: they may have cost money."""
        return

    def check(self) -> None:
        """Raises RunError if the engine has ended the last generation early: it cannot answer what is left."""
        return

    def score(self, requests: Dataset) -> Dataset:
        """Dataset[ScoreRequest] → Dataset[ScoreResult]; additional columns are kept.

        Returns one row per request, in any order. Requests skipped because the run stops are missing.
        """
        ...


def parsed(completion: Completion) -> Parsed:
    """The completion with its parse status and pairs."""
    result = parse_answer(completion["output"], completion["num_qas"], completion["finish_reason"])
    pairs = identified(result.pairs, completion["doi"], completion["window"], completion["attempt"])
    return Parsed(**completion, status=str(result.status), pairs=pairs)
