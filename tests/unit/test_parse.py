"""Each case says what a weaker parser would get wrong."""

import json

import pytest

from qaray.asking.grammar import parse_answer, question_key
from qaray.schema import FinishReason, ParseStatus
from tests.conftest import shared


def pairs(text, num_qas=2, finish=None):
    return [(p["Q"], p["A"]) for p in parse_answer(text, num_qas, finish).pairs]


TWO = [("What is X?", "It is 3 mol."), ("Why Y?", "Because: Z.")]


@pytest.mark.parametrize(
    "text",
    [
        "Q1: What is X?\nA1: It is 3 mol.\n\nQ2: Why Y?\nA2: Because: Z.",
        "Keywords: a, b\n\nQ1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.\n",
        "1. What is X?\nA: It is 3 mol.\n\n2. Why Y?\nA: Because: Z.",
        "1. What is X?\n\nA: It is 3 mol.\n\n2. Why Y?\n\nA: Because: Z.",
        "Q: What is X?\nA: It is 3 mol.\n\nQ: Why Y?\nA: Because: Z.",
        "**Q1:** What is X?\n**A1:** It is 3 mol.\n\n**Q2: Why Y?**\n**A2: Because: Z.**",
        "### Question 1: What is X?\nAnswer: It is 3 mol.\n### Question 2: Why Y?\nAnswer: Because: Z.",
        "1) **What is X?**\n**Answer:** It is 3 mol.\n\n2) **Why Y?**\n**Answer:** Because: Z.",
        "**Q1**: What is X?\n**A1**: It is 3 mol.\n\n**Q2**: Why Y?\n**A2**: Because: Z.",
        "1. **Question:** What is X?\n   **Answer:** It is 3 mol.\n2. **Question:** Why Y?\n   **Answer:** Because: Z.",
        "1. Q: What is X?\nA: It is 3 mol.\n2. Q: Why Y?\nA: Because: Z.",
        "1. Q1: What is X?\nA1: It is 3 mol.\n2. Q2: Why Y?\nA2: Because: Z.",
        "1. What is X? A: It is 3 mol.\n2. Why Y? A: Because: Z.",
        "Q1: What is X?\nA: It is 3 mol.\n\nQ: Why Y?\nA: Because: Z.",
        "Q: format as below\n\nQ1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.",
        "Q1: What is X? A1: It is 3 mol. Q2: Why Y? A2: Because: Z.",
        "Q: What is X? A: It is 3 mol.\nQ: Why Y? A: Because: Z.",
        "Sure, here are 2 pairs:\n\nQ1: What is X?\r\nA1: It is 3 mol.\r\n\r\nQ2: Why Y?\r\nA2: Because: Z.\r\n",
        "<think>Q1: no\nA1: no</think>\nQ1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.",
        "I reason. Q9: no? A9: no.</think>Q1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.",
        "Q1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.\n\nI hope these questions help!",
        "Q1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.\n\n---\nThese pairs cover the paper.",
        "Q1: What is X?\nA1: It is 3 mol.\nQ2: what is x\nA2: Again.\nQ3: Why Y?\nA3: Because: Z.",
        "Q1: [Question 1]\nA1: [Answer 1]\nQ2: What is X?\nA2: It is 3 mol.\nQ3: Why Y?\nA3: Because: Z.",
    ],
)
def test_grammars(text):
    assert pairs(text) == TWO
    assert parse_answer(text, 2).status is ParseStatus.COMPLETE


def test_answers_keep_lists_blank_lines_and_formulas():
    answer = (
        "Two steps:\n\n1. heat to 3.5 K\n2. cool: T = a:b\n\n- A: adenine\n\nQ = mcΔT holds.\nQ10 is 2.\n\nEnd of it."
    )
    assert pairs(f"Q1: How?\nA1: {answer}\n\nQ2: Why Y?\nA2: Because: Z.") == [("How?", answer), TWO[1]]


def test_numbered_list_in_an_answer_of_grammar_a_is_no_question():
    answer = "Steps:\n\n1. heat\n2. cool\n3. wait"
    assert pairs(f"1. How?\nA: {answer}\n\n2. Why Y?\nA: Because: Z.") == [("How?", answer), TWO[1]]


@pytest.mark.parametrize(
    ("text", "finish", "expected", "status"),
    [
        ("Q1: What is X?\nA1: It is 3 mol.\nQ2: Why", None, TWO[:1], ParseStatus.TRUNCATED),
        (
            "Q1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Beca",
            FinishReason.LENGTH,
            TWO[:1],
            ParseStatus.TRUNCATED,
        ),
        (
            "Q1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2:",
            FinishReason.LENGTH,
            TWO[:1],
            ParseStatus.TRUNCATED,
        ),
        ("Q1: What is X?\nA1: It is 3 mol.", FinishReason.STOP, TWO[:1], ParseStatus.SHORT),
        ("1. What is X?\nA: It is 3 mol.\n\n2. Why Y", None, TWO[:1], ParseStatus.TRUNCATED),
        ("<think>still thinking Q1: a? A1: b.", FinishReason.LENGTH, [], ParseStatus.MALFORMED),
        ("The paper is about X.", None, [], ParseStatus.MALFORMED),
        ("", None, [], ParseStatus.MALFORMED),
        ("Q1: …\nA1: …", None, [], ParseStatus.MALFORMED),
    ],
)
def test_status(text, finish, expected, status):
    result = parse_answer(text, 2, finish)
    assert ([(p["Q"], p["A"]) for p in result.pairs], result.status) == (expected, status)


@pytest.mark.parametrize(
    "text",
    [
        '[{"Q": "What is X?", "A": "It is 3 mol."}, {"Q": "Why Y?", "A": "Because\\nZ."}]',
        '```json\n[{"question": "What is X?", "answer": "It is 3 mol."},\n'
        ' {"question": "Why Y?", "answer": "Because\\nZ."}]\n```',
        '<think>[{"Q": "a", "A": "b"}]</think> {"Q": "What is X?", "A": "It is 3 mol."}\n'
        '{"Q": "Why Y?", "A": "Because\nZ."}',
    ],
)
def test_json_is_a_grammar_too(text):
    result = parse_answer(text, 2)
    assert [(p["Q"], p["A"]) for p in result.pairs] == [("What is X?", "It is 3 mol."), ("Why Y?", "Because\nZ.")]
    assert result.status == ParseStatus.COMPLETE


def test_json_that_was_cut_off_keeps_its_whole_pairs():
    text = '[{"Q": "What is X?", "A": "It is \\"3\\" mol."}, {"Q": "Why Y?", "A": "Beca'
    result = parse_answer(text, 2, FinishReason.LENGTH)
    assert [(p["Q"], p["A"]) for p in result.pairs] == [("What is X?", 'It is "3" mol.')]
    assert result.status == ParseStatus.TRUNCATED


def test_question_key_sees_letters_and_digits_only():
    assert question_key("What is *X*₂ ?") == question_key("what is x₂")
    assert question_key("What is X1?") != question_key("What is X2?")


# The published pairs lost a colon in two answers; the text keeps it.
LOST_COLONS = {("10.1016-j.jasms.2008.02.013", 9), ("10.1016-S0925-4005(01)00683-9", 2)}


def test_published_outputs_give_the_published_pairs():
    differing = set()
    for record in shared("reference_qas.json"):
        found = parse_answer(record["output"], 10).pairs
        assert len(found) == record["num_Q&A"]
        for i, (mine, theirs) in enumerate(zip(found, record["Q&A"], strict=True)):
            if mine != theirs:
                differing.add((record["doi"], i))
                assert json.dumps(mine).replace(":", "") == json.dumps(dict(theirs)).replace(":", "")
    assert differing == LOST_COLONS


def test_published_pairs_survive_grammar_a():
    for record in shared("reference_qas.json"):
        text = "\n\n".join(f"{i}. {p['Q']}\nA: {p['A']}" for i, p in enumerate(record["Q&A"], 1))
        assert parse_answer(text, 10).pairs == record["Q&A"]
