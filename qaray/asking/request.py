"""The request: what is asked of a model about a paper. `--request FILE` replaces the text.

A request holds slots, and may hold sections in double square brackets, which are left out where their slot is empty:

    {paper}      the paper's text, required
    {format}     how the answer is to be written (qaray.asking.grammar), required
    {num_qas}    number of pairs;   {pairs}   "pair" or "pairs", to go with it
    {keywords}   the paper's keywords, comma-separated
    {language}   of questions and answers: --language, else "the language of the paper"

    Write {num_qas} {pairs}[[ focused on: {keywords}]]. Write in {language}.

All other braces and brackets are text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from qaray.asking.grammar import answer_format
from qaray.config import ConfigError

INSTRUCTION = "You are an expert reader of scientific papers who writes exam questions for specialists."
PAPERS_LANGUAGE = "the language of the paper"
REQUIRED = ("paper", "format")
SLOTS = (*REQUIRED, "num_qas", "pairs", "keywords", "language")
_SLOT = re.compile(r"\{(" + "|".join(SLOTS) + r")\}")
_SECTION = re.compile(r"\[\[((?:(?!\]\]).)*?\{(" + "|".join(SLOTS[2:]) + r")\}(?:(?!\]\]).)*?)\]\]", re.S)


@dataclass(frozen=True)
class Request:
    """The text that is asked about each paper, and the language of the pairs.

    Raises ConfigError if the text lacks a required slot or holds one of them twice.
    """

    text: str
    language: str | None = None  # None: the paper's own
    name: str = "the request"  # for messages

    def __post_init__(self) -> None:
        for slot in REQUIRED:
            if (times := self.text.count(f"{{{slot}}}")) != 1:
                raise ConfigError(f"{self.name} must contain {{{slot}}} exactly once, found {times or 'none'}")
        if self.language and "{language}" not in self.text:
            raise ConfigError(f"--language {self.language}: {self.name} has no slot {{language}}")

    @property
    def sha256(self) -> str:
        """Identifies the request: the same in training and inference."""
        return hashlib.sha256("\0".join((INSTRUCTION, self.text, self.language or "")).encode()).hexdigest()

    def render(self, paper: str, keywords: Sequence[str], num_qas: int, structured: bool = False) -> str:
        """The request about ``paper`` for ``num_qas`` pairs; ``structured``: as JSON."""
        before, _, after = self._parts(keywords, num_qas, structured)
        return before + paper + after

    def paper_start(self, keywords: Sequence[str], num_qas: int, structured: bool = False) -> int:
        """Where the paper's text begins in the rendered request: characters."""
        return len(self._parts(keywords, num_qas, structured)[0])

    def matches(self, text: str) -> bool:
        """Whether ``text`` is this request about some paper, for any number of pairs."""
        pattern, end = "", 0
        for part in re.finditer(rf"{_SECTION.pattern}|{_SLOT.pattern}", self.text, re.S):
            pattern += re.escape(self.text[end : part.start()])
            pattern += "(?:.*?)"
            end = part.end()
        return re.fullmatch(pattern + re.escape(self.text[end:]), text, re.S) is not None

    def _parts(self, keywords: Sequence[str], num_qas: int, structured: bool) -> tuple[str, str, str]:
        """What comes before the paper, its slot, what comes after it."""
        values = {
            "paper": "{paper}",
            "format": answer_format(num_qas, structured),
            "num_qas": str(num_qas),
            "pairs": "pair" if num_qas == 1 else "pairs",
            "keywords": ", ".join(name for keyword in keywords if (name := keyword.strip("[] "))),
            "language": self.language or "",
        }
        text = _SECTION.sub(lambda section: section[1] if values[section[2]] else "", self.text)
        values["language"] = self.language or PAPERS_LANGUAGE
        before, paper, after = text.partition("{paper}")

        def filled(part: str) -> str:
            return _SLOT.sub(lambda slot: values[slot[1]], part)

        return filled(before), paper, filled(after)


@cache
def default_text() -> str:
    """The request that qaray ships."""
    return (resources.files("qaray.asking") / "request.txt").read_text(encoding="utf-8").rstrip("\n")


def default_request(language: str | None = None) -> Request:
    return Request(default_text(), language)
