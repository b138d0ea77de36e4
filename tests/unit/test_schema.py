"""Row types, the schemas that are derived from them, ids of pairs."""

from typing import Annotated, TypedDict

import pyarrow as pa

from qaray.schema import (
    COMPLETION_SCHEMA,
    PARSED_SCHEMA,
    PROMPT_SCHEMA,
    Failure,
    Int32,
    Pair,
    RejectReason,
    arrow_schema,
    columns,
    complete,
    failed,
    failure_of,
    identified,
    pair_id,
    table,
)


class Inner(TypedDict):
    a: Int32
    b: str | None


class Outer(Inner):
    flag: bool
    halves: list[Annotated[float, pa.float16()]]
    inner: Inner | None
    many: list[list[Inner]]


def test_a_schema_follows_from_its_row_type():
    inner = pa.struct([("a", pa.int32()), ("b", pa.string())])
    assert arrow_schema(Outer) == pa.schema(
        [
            ("a", pa.int32()),
            ("b", pa.string()),
            ("flag", pa.bool_()),
            ("halves", pa.list_(pa.float16())),
            ("inner", inner),
            ("many", pa.list_(pa.list_(inner))),
        ]
    )
    assert columns(Outer) == tuple(arrow_schema(Outer).names)


def test_a_completion_answers_its_prompt():
    prompt = {**dict.fromkeys(PROMPT_SCHEMA.names, 1), "doi": "10.1/a", "shard": "s"}
    row = complete(prompt, "text", failure=Failure.of(RejectReason.ENGINE_ERROR, ValueError("one\ntwo")))
    assert list(row) == COMPLETION_SCHEMA.names
    assert (row["doi"], row["reason"], row["detail"]) == ("10.1/a", "engine_error", "one")
    assert table([row], COMPLETION_SCHEMA).num_rows == 1
    assert failure_of(row) == Failure("engine_error", "one")
    assert failure_of({**row, **failed(None)}) is None
    assert Failure.of(RejectReason.NO_PAIRS, KeyError()).detail == "KeyError"


def test_ids_of_pairs():
    """An id is of where the pair comes from: each part counts, null is not 0, and it does not change over releases."""
    places = [(1,), (2,), (1, 0), (1, 0, 1), (1, 0, 2), (1, 0, 1, 5), (1, 0, 1, None, 5), (1, 1, 1), (1, None, 1)]
    ids = [pair_id("10.1/a", *place) for place in places] + [pair_id("10.1/b", 1)]
    assert len(set(ids)) == len(ids)
    assert pair_id("10.1/a", 1) == "f650c08f2b4607c0a943"
    assert identified([{"Q": "a", "A": "b"}] * 2, "10.1/a", 0, 1) == [
        Pair(Q="a", A="b", pair_id=pair_id("10.1/a", ordinal, 0, 1)) for ordinal in (1, 2)
    ]
    assert PARSED_SCHEMA.field("pairs").type == pa.list_(
        pa.struct([("Q", pa.string()), ("A", pa.string()), ("pair_id", pa.string())])
    )
