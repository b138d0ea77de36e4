"""The request: what is asked of a model about a paper, and when its answer is complete."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

INSTRUCTION = "You are an expert reader of scientific papers who writes exam questions for specialists."
REQUEST = """Here is a scientific paper:
{paper}

Write {num_qas} sophisticated question-answer {pairs} about the science in the paper above{focus}. Each question asks \
about another principle, mechanism, method or finding, and can be understood by a reader who has never seen the paper: \
it names the compound, system or quantity, and never says "this study", "the paper", "the authors" or "Figure 3". Each \
answer is correct, complete and specific: it gives the numbers with their units, the compounds and the conditions.
Use this format, with nothing before or after it:
{format}"""
STRUCTURED_FORMAT = 'a JSON list of {num_qas} objects, one a pair: [{{"Q": "…?", "A": "…"}}, …]'


def pairs_schema(num_qas: int) -> dict[str, Any]:
    """JSON schema of an answer under --structured."""
    text = {"type": "string", "minLength": 1}
    pair = {
        "type": "object",
        "properties": {"Q": text, "A": text},
        "required": ["Q", "A"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": pair, "minItems": num_qas, "maxItems": num_qas}


def request(paper: str, keywords: Sequence[str], num_qas: int, structured: bool = False) -> str:
    """The input of the generation task: the paper and what is asked of it."""
    names = ", ".join(k.strip("[] ") for k in keywords if k.strip("[] "))
    pairs = "pair" if num_qas == 1 else "pairs"
    shown = [f"Q{i}: {'What' if i % 2 else 'How'} …?\nA{i}: …" for i in range(1, min(num_qas, 2) + 1)]
    if num_qas > 2:
        shown.append(f"and so on up to Q{num_qas} and A{num_qas}.")
    slots = {
        "paper": paper,
        "num_qas": str(num_qas),
        "pairs": pairs,
        "focus": f", focused on: {names}" if names else "",
        "format": STRUCTURED_FORMAT.format(num_qas=num_qas) if structured else "\n\n".join(shown),
    }
    return re.sub(r"\{(\w+)\}", lambda slot: slots[slot[1]], REQUEST)


def answer_is_complete(text: str, num_qas: int) -> int | None:
    """Where the answer to ``request`` is finished: the position in characters of what comes after it; else None.

    That is a question past the last one asked for, or a line END.
    """
    thought = re.match(r"(?s).*</(?:think|thinking|reasoning)>", text)
    start = thought.end() if thought else 0
    if re.search(r"<(?:think|thinking|reasoning)>", text[start:]):
        return None  # a draft in a thought ends nothing
    match = re.search(rf"\n\s*(?:\*\*)?(?:Q(?:uestion )?0*{num_qas + 1}\s*[:.)]|END\b)", text[start:])
    return start + match.start() if match else None
