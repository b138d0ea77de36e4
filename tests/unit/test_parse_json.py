"""JSON of answers: where a value begins and ends, keys, speakers, and how deep pairs may lie."""

import json

import pytest

from qaray.asking.grammar import answer_format, json_schema, parse_answer
from qaray.asking.parsing.json_pairs import MAX_DEPTH
from qaray.asking.parsing.json_text import Loader, json_values, quoted_text

WHAT, ZINC, WHY, DOPED = "What is the film?", "Zinc oxide.", "Why is it grey?", "It is doped."
FIRST, SECOND = {"Q": WHAT, "A": ZINC}, {"Q": WHY, "A": DOPED}
ONE, BOTH = [(WHAT, ZINC)], [(WHAT, ZINC), (WHY, DOPED)]


def pairs(text):
    return [(pair["Q"], pair["A"]) for pair in parse_answer(text, 2).pairs]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (json.dumps(FIRST) + json.dumps(SECOND), BOTH),
        (f'The 5" film: {json.dumps([FIRST, SECOND])}', BOTH),
        (f"{json.dumps(FIRST)}\nQ1: Draft?\nA1: draft", ONE),
        (f"{json.dumps([FIRST])}\nQ1: Draft?\nA1: draft\n{json.dumps([SECOND])}", BOTH),
        (json.dumps(json.dumps(FIRST)), ONE),
        (f"```json\n{json.dumps(json.dumps(FIRST))}\n```", ONE),
        (json.dumps({f"{WHAT} ": ZINC, "为什么？": "因为。"}), [(WHAT, ZINC), ("为什么？", "因为。")]),
        (json.dumps([{"question": WHAT}, "a note", {"answer": ZINC}]), ONE),
        (f'[{{"Q": "{WHAT}", "A": NaN}}, {{"Q": "{WHY}", "A": -0}}]', [(WHY, "-0")]),
        (json.dumps({"questions": [WHAT, WHY], "answers": "No"}), []),
        (json.dumps([{"question": WHAT}, ["a note"], {"answer": ZINC}]), ONE),
    ],
)
def test_values_and_keys(text, found):
    assert pairs(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[1], {"a": 2} {"a": 3}', [(5, {"a": "2"}), (14, {"a": "3"})]),
        ('} ] {"a": [2]}', [(4, {"a": ["2"]})]),
        ('{"a": 2}{"a": 3}', [(0, {"a": "2"}), (8, {"a": "3"})]),
        ('5" {"a": {"b": 2}}', [(3, {"a": {"b": "2"}})]),
        ('{"a": "}"} {"b": {}}', [(0, {"a": "}"}), (11, {"b": {}})]),
        ("{x: x > 0}", [(0, {"x": "x > 0"})]),
        ('{"a": ', []),
    ],
)
def test_where_values_begin(text, found):
    assert list(json_values(text, Loader())) == found


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ('"a\\n"', "a\n"),
        ('```\n"a\\n\tb"\n```', "a\n\tb"),
        ("'a\\nb'", "a\nb"),
        ('"a\\u00b0"', "a°"),
        ('"a\\times"', "a\\times"),
        ('"a b"', None),
        ('"\\n"', None),
        ("a\\nb", None),
        ("ab\\nba", None),
        ('"a\\n" b"', None),
        ("\"a\\n'", None),
    ],
)
def test_a_text_that_is_one_string(text, content):
    assert quoted_text(text) == content


@pytest.mark.parametrize("asks", ["user", "human", "question", "Q", "questioner", "student"])
@pytest.mark.parametrize("tells", ["assistant", "GPT", "model", "bot", "answer", "A", "AI", "chatbot", "expert"])
def test_speakers(asks, tells):
    turns = [{"role": asks, "content": WHAT}, {"role": tells, "content": ZINC}]
    assert pairs(json.dumps(turns)) == ONE


@pytest.mark.parametrize(("left", "right"), [('{"a": ', "}"), ("[", "]")])
def test_pairs_within_many_wrappers(left, right):
    for depth, found in ((MAX_DEPTH - 5, ONE), (MAX_DEPTH + 5, [])):
        assert pairs(left * depth + json.dumps(FIRST) + right * depth) == found


def test_small_requests():
    assert answer_format(3).endswith("\n\nand so on up to Q3 and A3.")
    assert json_schema(1)["items"]["properties"]["A"]["minLength"] == 1
