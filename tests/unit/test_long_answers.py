"""Long and hostile answers: the right pairs, and what is counted. benchmarks/lengths.py has their time."""

import json

import pytest

from qaray.asking import grammar
from qaray.asking.grammar import MAX_ANSWER, answer_end, no_pairs, parse_answer
from qaray.asking.parsing import json_pairs
from qaray.asking.request import Request, default_request
from qaray.engines.local.batching import is_polled
from qaray.schema import FinishReason, NoPairs, ParseStatus

N = 60_000  # characters
PAIR = {"Q": "What is it?", "A": "Tin."}


@pytest.mark.parametrize(
    "run",
    ["\n", "\r\n", " \n", "*", "_", "`", "-", "\n---", "\n- ", "\n```", "\n\n> ", "</think> so ", "<think>", "\\"],
)
def test_a_run_at_the_end_of_an_answer_that_was_cut(run):
    """The answer may end with the beginning of a marker: only what stands before it is kept."""
    text = "Q1: What is it?\nA1: Tin." + run * (N // len(run))
    parsed = parse_answer(text + "\n**Q", 2, FinishReason.LENGTH)
    assert parsed.status in (ParseStatus.TRUNCATED, ParseStatus.MALFORMED)
    assert all(pair["Q"] == PAIR["Q"] and pair["A"].startswith("Tin") for pair in parsed.pairs)
    parse_answer(text + "x", 2, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q1: a?\nA1: b.\n", "Q1: a?\nA1: b."),
        ("b.\n\n**Q", "b."),
        ("b.\n**Question 2**", "b."),
        ("b.\n\n---\n\n### Ques", "b."),
        ("b.\n1. Q", "b.\n1. Q"),
        ("b c Q1", "b c Q1"),
        ("b.\n\n** Q Q", "b.\n\n** Q Q"),
        ("b.\nQ Q", "b.\nQ Q"),
        ("b Q\n", "b Q"),
        ("\n", ""),
        ("Q", "Q"),
        ("", ""),
    ],
)
def test_the_beginning_of_a_marker_at_the_end(text, expected):
    assert grammar._without_cut_marker(text) == expected


class Visited(str):
    """A text that counts the characters that are looked at one by one."""

    count = 0

    def __getitem__(self, key):
        self.count += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("run", ["\n", " \n", "*", "\n*", "\n- "])
def test_signs_before_the_end_are_visited_once(run):
    for end, visits in (("x", 4), ("", 2 * N), ("Q", 2 * N), ("Q Q", N)):
        text = Visited("b" + run * (N // len(run)) + end)
        grammar._without_cut_marker(text)
        assert text.count <= visits + 50


@pytest.mark.parametrize(
    "lines",
    [
        "Source" + " " * N + "x",
        "No" + " " * N + "x",
        "Q" + " " * N + "x",
        "Question 2" + " " * N + "x",
        "`" * N,
        "- " * (N // 2),
        "\n---" * (N // 4),
        "<answer>" + " " * N + "x",
        "<|start_of_role|>" + " " * N,
    ],
    ids=range(9),
)
def test_a_long_line_within_an_answer(lines):
    text = f"Q1: What is it?\nA1: Tin.\n{lines}\nQ2: Why?\nA2: It melts."
    pairs = parse_answer(text, 2).pairs
    assert [pair["Q"] for pair in pairs] == ["What is it?", "Why?"]


def test_reasoning_without_an_end():
    assert no_pairs("thinking...\n" + "\n" * N) is NoPairs.PROSE
    assert no_pairs("We use a " + "<think> tag " * (N // 12)) is NoPairs.PROSE


def test_many_keys_and_strings_of_json():
    numbered = {f"{side}{i}": f"{side.lower()} {i}" for i in range(2000) for side in ("Q", "A")}
    assert len(json_pairs.json_pairs(json.dumps(numbered))[0]) == 2000
    assert json_pairs.json_pairs("[{'a" * 2000 + "\\")[0] == []


def test_a_longer_answer_counts_as_cut_off():
    text = "Q1: What is it?\nA1: Tin.\n\nQ2: Why?\nA2: " + "It melts.\n" * (MAX_ANSWER // 10) + "\n\nQ3: a?\nA3: b."
    parsed = parse_answer(text, 3)
    assert (parsed.pairs, parsed.status) == ([PAIR], ParseStatus.TRUNCATED)  # the last sentence is cut
    assert answer_end(" " * MAX_ANSWER + "\nEND\n", 1) is None
    assert no_pairs(" " * MAX_ANSWER + text) is NoPairs.EMPTY


@pytest.mark.parametrize(
    "text",
    [
        '[{"Q": "What \\ud83d?", "A": "It \\udfff melts."}]',
        "Q1: What \ud800?\nA1: It \udfff melts.",
    ],
)
def test_pairs_are_valid_unicode(text):
    assert parse_answer(text, 1).pairs == [{"Q": "What ??", "A": "It ? melts."}]
    assert parse_answer('[{"Q": "Which \\ud83e\\uddea?", "A": "🧪"}]', 1).pairs == [{"Q": "Which 🧪?", "A": "🧪"}]


# The end of an answer


def test_the_end_is_looked_for_once(monkeypatch):
    """Many lines that may end an answer, of which none does."""
    spans = []
    find = grammar.reasoning_spans
    monkeypatch.setattr(grammar, "reasoning_spans", lambda text: spans.append(len(text)) or find(text))
    candidates = "\nQ4: c?" * (N // 7)
    assert answer_end("Q1: a?\nA1: b." + candidates, 3) is None
    assert answer_end("Q3: a?\nA: b." + candidates, 3) == len("Q3: a?\nA: b.")
    assert answer_end("A3: b.\nQ3: a?" + candidates + "\nA3: b.\n\nQ4: c?", 3) == len(
        "A3: b.\nQ3: a?" + candidates + "\nA3: b."
    )
    assert len(spans) == 3


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("Q2: a?\nA2: b.\nQ2: c?\nQ3: d?", None),  # the last question 2 has no answer
        ("Q2: a?\nA2: b.\nQ3: c?\nQ3: d?", 13),
        ("Q2: a?\nQ3: c?\nA: b\nQ3: d?", 18),
        ("A2: b.\nQ3: c?", None),
        ("  Q2: a? Answer: b.\n\n  END", 19),
    ],
)
def test_the_end_needs_the_last_question_and_its_answer(text, end):
    assert answer_end(text, 2) == end


def test_all_checks_of_one_answer_take_time_in_proportion_to_its_length():
    """Characters visited while it is written: a check visits all that is there, of about four characters a token."""
    for length in (1 << 10, 1 << 14, 1 << 18):
        assert sum(tokens for tokens in range(1, length + 1) if is_polled(tokens)) <= 130 * length
    assert [tokens for tokens in range(1, 100) if is_polled(tokens)] == [16, 32, 48, 64, 80, 96]


# Requests


@pytest.mark.parametrize("piece", ["[[", "[[ {language} ", "[[a]] ", "]]", "[[ {keywords} ]]"])
def test_sections_of_a_long_request(piece):
    request = Request("{paper}\n{format}\n" + piece * (N // len(piece)))
    text = request.render("A paper.", ["k"], 2)
    assert text.startswith("A paper.")
    assert request.matches(text)
    assert len(request.render("", [], 2)) <= len(text)


def test_a_request_is_recognized_whatever_the_paper():
    request = default_request()
    text = request.render("A paper.", ["tin"], 3)
    assert request.matches(text)
    assert request.matches(request.render("Write pairs about the paper. " * 10_000, [], 1))
    assert not request.matches("x" + text)
    assert not request.matches(text.replace("A paper.", "")[: len(text) // 2])
