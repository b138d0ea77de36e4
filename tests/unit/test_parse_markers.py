"""Which markers count: those that look like the first ones, are numbered in order, and stand near their answer."""

import pytest

from qaray.asking.grammar import no_pairs, parse_answer
from qaray.schema import NoPairs, ParseStatus

WHAT, ZINC, WHY, DOPED = "What is the film?", "Zinc oxide.", "Why is it grey?", "It is doped."


def read(text):
    found = parse_answer(text, 9)
    return [(pair["Q"], pair["A"]) for pair in found.pairs], found.status


@pytest.mark.parametrize(
    ("first", "second", "quoted"),
    [
        (("Q1", "A1"), ("Q2", "A2"), "Q: good\nA: bad"),
        (("Q1", "A1"), ("Q2", "A2"), "Question 2: the film\nAnswer 2: grey"),
        (("Q1", "A1"), ("Q2", "A2"), "Q4: good\nA4: bad"),
        (("Q", "A"), ("Q", "A"), "Question 5: good\nAnswer 5: bad"),
        (("Q", "A"), ("Q", "A"), "Q. robur is an oak.\nA. thaliana is none."),
        (("Question", "Answer"), ("Question", "Answer"), "Q: charge\nA: area"),
        (("Question 1", "Answer 1"), ("Question 2", "Answer 2"), "Q: charge\nAnswer: area"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n\n{} Who"])
def test_other_markers_in_an_answer_are_text(first, second, quoted, end):
    text = f"{first[0]}: {WHAT}\n{first[1]}: Grades:\n{quoted}\n\n{second[0]}: {WHY}\n{second[1]}: {DOPED}"
    end = end.replace("{}", second[0].replace("2", "3") + ":")
    status = ParseStatus.TRUNCATED if end else ParseStatus.SHORT
    assert read(text + end) == ([(WHAT, f"Grades:\n{quoted}"), (WHY, DOPED)], status)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # Another kind of question counts if it asks.
        (f"Q: {WHAT}\nA: {ZINC}\nQuestion 5: So?\nAnswer 5: Yes.\nQ: {WHY}\nA: {DOPED}",
         [(WHAT, ZINC), ("So?", "Yes."), (WHY, DOPED)]),
        # Between a question and its answer, other markers are text of the question.
        (f"Q: {WHAT}\nA: {ZINC}\nQ: {WHY}\nQuestion 7: hard\nA: {DOPED}",
         [(WHAT, ZINC), (f"{WHY}\nQuestion 7: hard", DOPED)]),
        (f"Q: {WHAT}\nA: {ZINC}\nQ: {WHY}\nQuestion 7: hard\nAnswer 7: so\nA: {DOPED}",
         [(WHAT, ZINC), (f"{WHY}\nQuestion 7: hard\nAnswer 7: so", DOPED)]),
        (f"Q: {WHAT}\nA: {ZINC}\nQ: {WHY}\nQuestion: hard\n[Answer] so\nA: {DOPED}",
         [(WHAT, ZINC), (f"{WHY}\nQuestion: hard\n[Answer] so", DOPED)]),
        # The last of several questions has the first of several answers.
        (f"Q: lost\nQ: too\nQ: {WHY}\nA: {DOPED}\nA: more", [(WHY, f"{DOPED}\nA: more")]),
        # Numbers must agree unless questions and answers alternate.
        (f"Q1: {WHAT}\nA2: {ZINC}\nQ5: {WHY}\nA6: {DOPED}", [(WHAT, ZINC), (WHY, DOPED)]),
        (f"Q1: {WHAT}\nQ2: {WHY}\nA1: {ZINC}\nA2: Grades:\nQ5: good\nA6: bad",
         [(WHAT, ZINC), (WHY, "Grades:\nQ5: good\nA6: bad")]),
        (f"Q1: {WHAT}\nA1: Grades:\nQ4: good\nA4: bad\n\nQ2: {WHY}\nA: {DOPED}",
         [(WHAT, "Grades:\nQ4: good\nA4: bad"), (WHY, DOPED)]),
        ("Q1: lost\nQ2: Why?\nA2: Grades:\nQ5: good\nA6: bad", [("Why?", "Grades:\nQ5: good\nA6: bad")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nA: Grades:\nQ5: good\nA6: bad", [(WHAT, f"{ZINC}\nA: Grades:\nQ5: good\nA6: bad")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nA: Grades:\nQ5: good\nA6: bad\nA7: mad",
         [(WHAT, f"{ZINC}\nA: Grades:\nQ5: good\nA6: bad\nA7: mad")]),
        (f"Q1: {WHAT}\nQ2: {WHY}\nA1: {ZINC}\nA2: {DOPED}\nQ3: So?\nA4: Yes.",
         [(WHAT, ZINC), (WHY, DOPED), ("So?", "Yes.")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nQ2: {WHY}\nA2: {DOPED}\nQ2: So?\nA2: Yes.",
         [(WHAT, ZINC), (WHY, DOPED), ("So?", "Yes.")]),
        # Lines between a question and its answer.
        (f"Q: {WHAT}\nIt is thin.\nIt shines.\nIt bends.\nA: {ZINC}",
         [(f"{WHAT}\nIt is thin.\nIt shines.\nIt bends.", ZINC)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nQ2: {WHY}\nIt is thin.\nIt shines.\nIt bends.\nA2: {DOPED}",
         [(WHAT, ZINC), (f"{WHY}\nIt is thin.\nIt shines.\nIt bends.", DOPED)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nQ: {WHY}\nIt is thin.\nIt shines.\nA: {DOPED}",
         [(WHAT, ZINC), (f"{WHY}\nIt is thin.\nIt shines.", DOPED)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nQ: the film\nIt is thin.\n\nIt shines.\nIt bends.\nA: grey",
         [(WHAT, f"{ZINC}\nQ: the film\nIt is thin.\n\nIt shines.\nIt bends.\nA: grey")]),
        (f"Q: {WHAT}\nA: {ZINC}\nQ5: the film\nIt is thin.\nIt shines.\nIt bends.\nA5: grey",
         [(WHAT, f"{ZINC}\nQ5: the film\nIt is thin.\nIt shines.\nIt bends.\nA5: grey")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nQ: so they asked", [(WHAT, f"{ZINC}\nQ: so they asked")]),
        # Letters that are variables, where no more than half of the questions ask.
        ("P: Why so?\nR: It is dense.\nP: 0.05\nR: 0.9", []),
        ("P: Why so?\nR: It is dense.\nP: Is it?\nR: Yes.\nP: 0.05\nR: 0.9",
         [("Why so?", "It is dense."), ("Is it?", "Yes."), ("0.05", "0.9")]),
        # Enclosed, in bold, or with a point.
        (f"**Question.** {WHAT}\n**Answer.** {ZINC}", [(WHAT, ZINC)]),
        (f"Q: {WHAT}\nAnswer. It follows.\nA: {ZINC}", [(f"{WHAT}\nAnswer. It follows.", ZINC)]),
        (f"Q1: {WHAT}\n(A1: see below)\nA1: {ZINC}", [(f"{WHAT}\n(A1: see below)", ZINC)]),
        (f"Question.\n{WHAT}\nAnswer.\n{ZINC}", [(WHAT, ZINC)]),
        ("**Q1: Film** of what?\n**A1: Zinc** oxide.", [("Film of what?", "Zinc oxide.")]),
        ("**Q1: Film** of **what**?\n**A1: Zinc** **oxide**.", [("Film of **what**?", "Zinc **oxide**.")]),
        (f"**Q1**: What is the **film**?\n**A1**: {ZINC}", [("What is the **film**?", ZINC)]),
        (f"Q1: {WHAT}\nA1: **Zinc\noxide.**", [(WHAT, "Zinc\noxide.")]),
        (f"**Q1: {WHAT}\nA1: {ZINC}**", [(WHAT, ZINC)]),
        (f"Q1: Q: {WHAT}\nA1: A: {ZINC}", [(WHAT, ZINC)]),
        (f"Q: Q1: {WHAT}\nQ: Q2: {WHY}\nA: A2: {DOPED}\nA: A1: {ZINC}", [(WHAT, ZINC), (WHY, DOPED)]),
        # Within a line; choices; headings within a question.
        (f"Q1: {WHAT}\nA1: {ZINC}\nIt shines. Q2: {WHY} A2: {DOPED}", [(WHAT, f"{ZINC}\nIt shines."), (WHY, DOPED)]),
        (f"1. Q1: {WHAT} A1: {ZINC}\n2. Q2: {WHY} A2: {DOPED}", [(WHAT, ZINC), (WHY, DOPED)]),
        (f"Q: Which?\nA. one\nB. two\nA: {ZINC}", [("Which?\nA. one\nB. two", ZINC)]),
        (f"Q1: {WHAT}\n\n**Film**\nA1: {ZINC}", [(f"{WHAT}\n\n**Film**", ZINC)]),
        # Fields and ends of answers.
        (f"Q1: {WHAT}\nA1: {ZINC}\n\nSource: p. 3\n\nQ2: {WHY}\nA2: {DOPED}\n\nSource: p. 4",
         [(WHAT, ZINC), (WHY, DOPED)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nSource: p. 3\nQ2: {WHY}\nA2: {DOPED}\nSource: p. 4\nQ3: So?\nA3: Yes.",
         [(WHAT, ZINC), (WHY, DOPED), ("So?", "Yes.")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nSource: a shop.\nIt shines.\nQ2: {WHY}\nA2: {DOPED}\nSource: ore.\nIt is old.",
         [(WHAT, f"{ZINC}\nSource: a shop.\nIt shines."), (WHY, f"{DOPED}\nSource: ore.\nIt is old.")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\n\nI hope this helps!\n\nQ2: {WHY}\nA2: {DOPED}\n\n**Note**",
         [(WHAT, f"{ZINC}\n\nI hope this helps!"), (WHY, f"{DOPED}\n\n**Note**")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\n\n___\n\nDone.", [(WHAT, ZINC)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\n\n___\nDone.", [(WHAT, ZINC)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nEND", [(WHAT, ZINC)]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nIt shines.\n**END**", [(WHAT, f"{ZINC}\nIt shines.")]),
        (f"Q1: {WHAT}\nA1: {ZINC}\nIt has an end", [(WHAT, f"{ZINC}\nIt has an end")]),
        # JSON after a question without an answer is read as JSON, after an answer it is text.
        (f'Q1: Here they are?\n[{{"Q": "{WHAT}", "A": "{ZINC}"}}]', [(WHAT, ZINC)]),
        (f'Q1: {WHY}\nA1: {DOPED}\n{{"Q": "{WHAT}", "A": "{ZINC}"}}',
         [(WHY, f'{DOPED}\n{{"Q": "{WHAT}", "A": "{ZINC}"}}')]),
    ],
)  # fmt: skip
def test_which_markers_count(text, found):
    assert read(text)[0] == found


def test_an_answer_alone_is_prose():
    assert (read("A1: It is so."), no_pairs("A1: It is so.")) == (([], ParseStatus.MALFORMED), NoPairs.PROSE)
