"""Pairs without a marker for each question: emphasis around list items, sub-lists of answers, sections, tables."""

import pytest

from qaray.asking.grammar import parse_answer
from qaray.schema import ParseStatus

WHAT, ZINC, WHY, DOPED = "What is the film?", "Zinc oxide.", "Why is it grey?", "It is doped."
TWO = [(WHAT, ZINC), (WHY, DOPED)]


def read(text):
    found = parse_answer(text, 3)
    return [(pair["Q"], pair["A"]) for pair in found.pairs], found.status


@pytest.mark.parametrize(
    ("item", "question"),
    [
        (f"*1. {WHAT}*", WHAT),
        (f"**1. {WHAT}**", WHAT),
        ("**1. Film:** What is **it** made of?", "Film: What is **it** made of?"),
        ("- **1. Film:** What is it made of?", "Film: What is it made of?"),
        ("**1.** What is the **film**?", "What is the **film**?"),
        ("1. What is the *film*?", "What is the *film*?"),
        (f"1. {WHAT}\nIt is thin.\nIt shines.", f"{WHAT}\nIt is thin.\nIt shines."),
    ],
)
def test_numbered_questions_with_emphasis(item, question):
    assert read(f"{item}\nA: {ZINC}\n\n2. {WHY}\n\n\nIt shines.\nA: {DOPED}") == (
        [(question, ZINC), (f"{WHY}\n\n\nIt shines.", DOPED)],
        ParseStatus.SHORT,
    )


@pytest.mark.parametrize(
    "answer",
    [
        "In steps:\n1. heat\n2. cool",
        "3. Two.",
        "In steps:\n\n1. heat\n2. cool\n\n3. wait",  # question 2 would follow, not 3
        f"{ZINC}\n\n2. Heat it.\nThen cool it.\nThen wait.\nThen weigh it.\nA: none.",
    ],
)
def test_lists_in_the_last_answer_are_no_questions(answer):
    assert read(f"1. {WHAT}\nA: {answer}") == ([(WHAT, answer)], ParseStatus.SHORT)


@pytest.mark.parametrize("end", ["", "\n", "\n\n  "])
def test_a_numbered_question_whose_answer_is_empty(end):
    assert read(f"1. {WHAT}\nA:{end}") == ([], ParseStatus.MALFORMED)


def test_a_question_after_a_numbered_answer_at_the_end_is_cut_off():
    assert read(f"1. {WHAT}\nA: {ZINC}\n\n2. {WHY}\n ") == ([TWO[0]], ParseStatus.TRUNCATED)


@pytest.mark.parametrize(
    ("questions", "answers", "found"),
    [
        (f"1. {WHAT}\n2. {WHY}", f"1. {ZINC}\n2. {DOPED}", TWO),
        (f"About the film:\n1. {WHAT}\n2. {WHY}", f"As follows:\n1. {ZINC}\n2. {DOPED}", TWO),
        (f"- {WHAT}\n- {WHY}", f"So:\n- {ZINC}\n- {DOPED}", TWO),
        (f"1. {WHAT}\n2. {WHY}", f"1. {ZINC}\n2. So:\n2. {DOPED}\n- Yes.", [TWO[0], (WHY, f"So:\n2. {DOPED}\n- Yes.")]),
        (f"1. {WHAT}\n2. {WHY}", f"2. {DOPED}", TWO[1:]),
        (f"2. {WHY}", f"1. {ZINC}\n2. {DOPED}", []),
    ],
)
@pytest.mark.parametrize("plan", ["", "The plan:\n1. Read it\n2. Ask\n\n"])
@pytest.mark.parametrize("heading", [str.title, str.upper])
def test_sections_of_questions_and_answers(questions, answers, found, plan, heading):
    text = f"{plan}{heading('questions')}:\n{questions}\n\n{heading('answers')}:\n{answers}"
    assert read(text) == (found, ParseStatus.SHORT if found else ParseStatus.MALFORMED)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"A | table\n\nField | Value\n---|---\nYear | 2010\n\nQuestion | Answer\n---|---\n{WHAT} | {ZINC}", TWO[:1]),
        (f"| Question | Answer |\n|---|---|\n| {WHAT} | {ZINC}\n{WHY} | {DOPED} |", TWO),
        (f"Question | Answer\n---|---\n{WHAT} | {ZINC}\n\n{WHY} | {DOPED}\nAnd so on.\nWho knows? | Nobody.", TWO),
        (f"Question | Answer\n---|---\n{WHAT} | → Na+ moves.", [(WHAT, "→ Na+ moves.")]),
    ],
)
def test_tables(text, found):
    assert read(text) == (found, ParseStatus.SHORT)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"Q1: {WHAT}\n{ZINC}", TWO[:1]),
        (f"Q: {WHAT}\n{ZINC}", TWO[:1]),
        (f"Q: {WHAT} → {ZINC}\nQ: {WHY} → {DOPED}", TWO),
        (f"Q1: Name the film.\n{ZINC}\n\nQ2: {WHY}\n{DOPED}", [("Name the film.", ZINC), TWO[1]]),
        (f"Q: as below\n{ZINC}\nQ: as above\n{DOPED}", []),
        (f"1. {WHAT}\n{ZINC}", []),  # one numbered question may be a heading
        (f"1. {WHAT}\n→ {ZINC}\nIt shines.", [(WHAT, f"{ZINC}\nIt shines.")]),
        (f"1. {WHAT}\nIn short:\n→ {ZINC}", []),
        (f"1. {WHAT} → {ZINC}\nIt shines.", [(WHAT, f"{ZINC}\nIt shines.")]),
        (f"1. {WHAT}\n{ZINC}\n\n2. {WHY}\nI hope this helps!", []),
        (f"1. {WHAT}\n{ZINC}\n2. {WHY}\n{DOPED}\n3. Who?", TWO),
        (f"1. {WHAT}\n{ZINC}\n2. Who?\n3. Where?\n4. {WHY}\n{DOPED}", []),  # rather a list of questions
        (f"1. {WHAT}\n- zinc\n- oxygen\n\n2. {WHY}\n- {DOPED}", [(WHAT, "- zinc\n- oxygen"), TWO[1]]),
        (f"__{WHAT}__\n{ZINC}\n__{WHY}__\n{DOPED}", TWO),
        (f"**K?**\n{ZINC}\n\n**{WHY}**\n{DOPED}", [("K?", ZINC), TWO[1]]),
        (f"## X-rays or light?\n{ZINC}\n## {WHY}\n{DOPED}", [("X-rays or light?", ZINC), TWO[1]]),
        (f"## The film\n{ZINC}\n## The colour\n{DOPED}", []),
        (f"**Is it grey?** No\n{ZINC}\n\n**Is it hot?** No\n{DOPED}", []),
    ],
)
def test_questions_without_markers_of_answers(text, found):
    assert read(text) == (found, ParseStatus.SHORT if found else ParseStatus.MALFORMED)
