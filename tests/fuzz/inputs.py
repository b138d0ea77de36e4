"""Seeded mutations of answers, of texts of papers and of files, and what must hold for any of them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

from qaray.asking.grammar import answer_end, no_pairs, parse_answer
from qaray.corpus.readers.dispatch import read_records
from qaray.corpus.records import Problem, paired_fields, paper_fields
from qaray.corpus.sentences import split_sentences
from qaray.metrics.grounding import is_in_paper, mentions, quantities
from qaray.metrics.self_contained import paper_reference
from qaray.run.storage import Location
from qaray.schema import FinishReason, ParseStatus, RejectReason
from tests.conftest import make_paper

ANSWERS = (
    "Q1: What is X?\nA1: It is 3 mol.\n\nQ2: Why Y?\nA2: Because: Z.",
    "Keywords: a, b\n\nQ1: What is X?\nA1: It is 3 mol.\nQ2: Why Y?\nA2: Because: Z.\n\nI hope this helps!",
    "1. What is X?\nA: It is 3 mol.\n\n2. Why Y?\nA: Because: Z.\n- one\n- two",
    "**Q1:** What is X?\n**A1:** It is 3 mol.\n\n**Q2: Why Y?**\n**A2: Because: Z.**",
    "1. **Question:** What is X?\n   **Answer:** It is 3 mol.\n2. **Question:** Why Y?\n   **Answer:** Because.",
    "Q1: What is X? A1: It is 3 mol. Q2: Why Y? A2: Because: Z.",
    "<think>Q1: no\nA1: no</think>\nQ1: What is X?\nA1: It is 3 mol.",
    '```json\n[{"Q": "What is X?", "A": "It is \\"3\\" mol."}, {"question": "Why?", "answer": "Because."}]\n```',
    '[{"Q": "What is \\\\beta?", "A": "$2 \\\\times 10^3$"}, {\'question\': \'Why?\', "answer": ["a", 2]},]',
    "### Question 1\nWhat is X?\n\n### Answer 1\nIt is 3 mol.\n\nQuestions:\n1. a?\n2. b?\nAnswers:\n1. c\n2. d",
    "| Question | Answer |\n|---|---|\n| What is X? | 3 mol |\n<question>Why?</question><answer>So.</answer>",
    "问题1：为什么？答案1：因为。\n1. What is X?\n→ 3 mol\n[THINK]no[/THINK]<|im_end|>",
)
PAPERS = (
    "It was kept at 25 ºC (298 K) for 2–4 h [12].3 Smith et al. (2010) found 3.2 \\\\times 10^{-19} J, cf. Fig. 2.",
    "T/K: 300, 310, 320. The 532-nm laser gave (2–4) × 10³ counts; 3 × 100 mL of 1,2-dichloroethane, 1 000 mg.",
    "A mass of 1.234(5) g ± 0.1 %, 10 −6 M, 6.02e23 and 0.5 W/(m·K). 2.1. Methods\nThe 1H NMR spectrum of IL-6 was.",
    "What did the authors find in this study about the proposed method (Table 2) at 90⁰ and minus five degrees?",
)
FILES = {
    ".json": (
        json.dumps([make_paper(i) for i in range(3)]),
        json.dumps(
            [{**make_paper(0), "Q&A": [{"Q": "a?", "A": "b."}]}, {"doi": 3}, None], ensure_ascii=False, indent=1
        ),
    ),
    ".jsonl": ("\n".join(json.dumps(make_paper(i)) for i in range(3)), '\n\n{"doi": "x"}\n[1]\n'),
}
PIECES = (
    "Q:", "Q1:", "A1:", "A:", "1.", "99)", "**", "\n", "\n\n", "?", ":", "  ", "```", "<think>", "</think>", "{", "}",
    "[", "]", '"', "\\", "\\u0000", "\\ud800", ",", "\0", "\r\n", "\u2028", "\u200b", "\ufeff", "é", "日本",
    "\U0001f9ea", "NaN",
    "1e999", "-", "null", "true", '{"Q": "', '", "A": "', "Question 1:", "Answer:", "#" * 9, "[END]", "a" * 50,
)  # fmt: skip


def mutated(draw: random.Random, text: str) -> str:
    """The text with a few pieces cut out, doubled, moved, put in, or repeated many times."""
    for _ in range(draw.randint(1, 6)):
        start = draw.randint(0, len(text))
        end = min(len(text), start + draw.choice((0, 1, 2, 5, 20, 200)))
        kind = draw.randrange(6)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:end] * draw.choice((1, 1, 2, 8)) + text[end:]
        elif kind == 2:
            text = text[:start] + draw.choice(PIECES) * draw.choice((1, 1, 1, 3, 30)) + text[start:]
        elif kind == 3:
            text = text[:start] + chr(draw.choice((0, 9, 0x85, 0xA0, 0xFFFF, draw.randrange(0xD7FF)))) + text[end:]
        elif kind == 4:
            text = text[end:] + text[:end]
        else:
            text = text[:start]
    return text


def check_answer(text: str, num_qas: int = 3, finish: FinishReason | None = None) -> None:
    """Whatever the text: pairs of whole strings, none twice, and a status that agrees with their number."""
    parsed = parse_answer(text, num_qas, finish)
    questions = [pair["Q"] for pair in parsed.pairs]
    assert all(isinstance(pair[key], str) and pair[key].strip() for pair in parsed.pairs for key in ("Q", "A"))
    assert len(set(questions)) == len(questions)
    assert (parsed.status == ParseStatus.MALFORMED) == (not questions)
    assert (parsed.status == ParseStatus.COMPLETE) == (len(questions) >= num_qas)
    json.dumps(parsed.pairs).encode()
    assert questions or no_pairs(text)
    end = answer_end(text, num_qas)
    assert end is None or 0 <= end <= len(text)


def check_paper(text: str) -> None:
    """Whatever the text: its sentences are the text, and its own numbers are found in it."""
    assert "".join(split_sentences(text)) == text
    paper = quantities(text)
    assert all(is_in_paper(number, paper) for number in mentions(text))
    paper_reference(text)


def check_file(place: Path, content: bytes) -> None:
    """Whatever the bytes: records in order, each a value or a problem with a reason, and the same for its fields."""
    place.write_bytes(content)
    last = -1
    for record in read_records(Location.of(str(place))):
        assert record.position > last or record.problem is not None
        last = record.position
        if record.problem is not None:
            assert record.problem.reason in RejectReason
            continue
        for fields in (paper_fields, paired_fields):
            _fields_or_a_problem(fields, record.value)


def _fields_or_a_problem(fields: Callable[[object], dict[str, object]], value: object) -> None:
    with contextlib.suppress(Problem):
        found = fields(value)
        assert isinstance(found["doi"], str)
        str(found["txt"]).encode()


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes changed here and there, so that they may be no text any more."""
    if draw.random() < 0.7:
        return content
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.choice((0, 0x80, 0xC3, 0xED, 0xFF, draw.randrange(256)))
    return bytes(changed)


def random_case(draw: random.Random, folder: Path) -> tuple[Callable[[], None], object]:
    """One check, and the input that it is made on: of four, two are answers, one is a paper's text and one a file."""
    kind = draw.randrange(4)
    if kind == 0:
        text = mutated(draw, draw.choice(PAPERS))
        return lambda: check_paper(text), text
    if kind < 3:
        text = mutated(draw, draw.choice(ANSWERS))
        num_qas, finish = draw.randint(1, 12), draw.choice([None, *FinishReason])
        return lambda: check_answer(text, num_qas, finish), text
    ending = draw.choice(list(FILES))
    content = damaged(draw, mutated(draw, draw.choice(FILES[ending])).encode("utf-8", "surrogatepass"))
    return lambda: check_file(folder / f"fuzz{ending}", content), content
