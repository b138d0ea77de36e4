"""Attempts at a prompt: their seeds, when another is made, and when a prompt has no answer."""

import asyncio
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from qaray.config import GenerateConfig
from qaray.engines.attempts import as_completed, attempts, attempts_of, next_attempt, select, stream_seed, unpacked
from qaray.schema import COMPLETION_SCHEMA, Failure, FinishReason, complete, failure_of, table

GOOD, BAD = "Q1: a?\nA1: b.\nQ2: c?\nA2: d.", "Q1: a?\nA1: b."


def prompt(**changes):
    known = {"doi": "d", "num_qas": 2, "max_tokens": 10, "attempt": 1, "reason": None, "detail": None, "opening": ""}
    rest = ("row", "window", "windows", "start", "end", "prompt_tokens", "truncated_tokens")
    return {**dict.fromkeys(rest, 0), "shard": "s", **known, **changes}


def asked(first, texts, most, stop_after=99):
    """Attempts made, their texts and their failures; a text None is a request without an answer."""
    seen = []

    async def once(each):
        seen.append(each["attempt"])
        text = texts[each["attempt"] - 1]
        return None if text is None else complete(each, text, finish_reason=FinishReason.STOP)

    done = asyncio.run(attempts_of(first, once, most, lambda: len(seen) >= stop_after))
    return seen, [row["output"] for row in done], [failure_of(row) for row in done]


@pytest.mark.parametrize(
    ("first", "texts", "most", "stop_after", "expected"),
    [
        (1, [BAD, GOOD, BAD], 3, 99, ([1, 2], [BAD, GOOD])),
        (1, [BAD, BAD, BAD], 2, 99, ([1, 2], [BAD, BAD])),
        (2, [None, BAD, GOOD], 3, 99, ([2, 3], [BAD, GOOD])),
        (1, [BAD, GOOD], 3, 1, ([1], [BAD])),
        (1, [GOOD], 3, 0, ([], [])),
        (1, [BAD, None, GOOD], 3, 99, ([1, 2], [BAD])),  # no answer: the prompt stays pending
    ],
)
def test_attempts_continue_until_the_pairs_are_there(first, texts, most, stop_after, expected):
    assert asked(prompt(attempt=first), texts, most, stop_after)[:2] == expected


def test_prompts_that_cannot_be_answered_return_their_failure():
    assert asked(prompt(reason="over_length", detail="x"), [GOOD], 3) == ([], [""], [Failure("over_length", "x")])
    assert asked(prompt(max_tokens=0), [GOOD], 3)[2] == [Failure("over_length", "no tokens left for the answer")]
    assert asked(prompt(max_tokens=1), [GOOD], 3)[1] == [GOOD]


def test_the_next_attempt():
    short = complete(prompt(), BAD, finish_reason=FinishReason.STOP)
    assert next_attempt(prompt(), short, 2) == prompt(attempt=2)
    assert next_attempt(prompt(attempt=2), short, 2) is None
    assert next_attempt(prompt(), complete(prompt(), GOOD, finish_reason=FinishReason.STOP), 2) is None
    assert next_attempt(prompt(), complete(prompt(), failure=Failure("engine_error", "x")), 2) is None


@pytest.mark.parametrize(
    ("engine", "temperature", "expected"),
    [("echo", 0.6, 1), ("transformers", 0, 1), ("transformers", 1, 4), ("vllm", 0.6, 4)],
)
def test_what_always_gives_the_same_answer_is_asked_once(engine, temperature, expected):
    config = GenerateConfig(
        file_path="-", output_dir="-", engine=engine, base_model="m", temperature=temperature, max_attempts=4
    )
    assert attempts(config) == expected


def test_seeds_are_the_same_in_every_release():
    for doi in ("10.1/a", "zinc \udcff"):
        key = b"7\x002\x003\x00" + doi.encode("utf-8", "surrogatepass")
        assert stream_seed(7, doi, 2, 3) == int.from_bytes(hashlib.sha256(key).digest()[:8], "big")


def test_results_come_as_they_complete():
    async def run():
        turn = asyncio.Event()

        async def late():
            await turn.wait()
            return "late"

        async def early():
            turn.set()
            return "early"

        return [each async for each in as_completed([late(), early()])]

    assert asyncio.run(run()) == ["early", "late"]


def test_lists_of_answers_become_a_table():
    first, second = complete(prompt(), BAD), complete(prompt(attempt=2), GOOD)
    assert unpacked(pa.table({"answers": [[first, second], [], None]})) == table([first, second], COMPLETION_SCHEMA)
    assert unpacked(pa.table({})) == table([], COMPLETION_SCHEMA)


def test_selected_values_are_pythons():
    row = {"doi": "d", "attempt": np.int32(3), "token_ids": np.array([1, 2]), "detail": None, "other": 0}
    found = select(row, ["doi", "attempt", "token_ids", "detail"])
    assert found == {"doi": "d", "attempt": 3, "token_ids": [1, 2], "detail": None}
    assert [type(value) for value in found.values()] == [str, int, list, type(None)]
