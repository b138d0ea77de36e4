"""Seeded mutations of answers and of files of papers, and what must hold for any of them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

from qaray.asking.grammar import parse_answer
from qaray.corpus.readers.dispatch import read_records
from qaray.corpus.records import Problem, paired_fields, paper_fields
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
    """One check, and the input that it is made on: three answers to each file."""
    if draw.random() < 0.75:
        text = mutated(draw, draw.choice(ANSWERS))
        num_qas, finish = draw.randint(1, 12), draw.choice([None, *FinishReason])
        return lambda: check_answer(text, num_qas, finish), text
    ending = draw.choice(list(FILES))
    content = damaged(draw, mutated(draw, draw.choice(FILES[ending])).encode("utf-8", "surrogatepass"))
    return lambda: check_file(folder / f"fuzz{ending}", content), content
