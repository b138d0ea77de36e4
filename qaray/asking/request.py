"""The request: the text that asks a model for pairs about a paper. `--request FILE` replaces it.

A request contains slots, and may contain sections in double square brackets, which are omitted if their slot is empty:

    {paper}      the paper's text, required
    {format}     format of the answer (qaray.asking.grammar), required
    {num_qas}    number of pairs;   {pairs}   "pair" or "pairs", to match it
    {keywords}   the paper's keywords, comma-separated
    {language}   language of the pairs: --language, else "the language of the paper"

    Write {num_qas} {pairs}[[ focused on: {keywords}]]. Write in {language}.

All other braces and brackets are literal text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
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
_SECTION_SLOT = re.compile(r"\{(" + "|".join(SLOTS[2:]) + r")\}")


@dataclass(frozen=True)
class Request:
    """The request text for each paper, and the language of the pairs.

    Raises ConfigError unless the text contains each required slot exactly once, and {language} if a language is set.
    """

    text: str
    language: str | None = None  # None: the language of the paper
    name: str = "the request"  # used in error messages

    def __post_init__(self) -> None:
        for slot in REQUIRED:
            if (times := self.text.count(f"{{{slot}}}")) != 1:
                raise ConfigError(f"{self.name} must contain {{{slot}}} exactly once, found {times or 'none'}")
        if self.language and "{language}" not in self.text:
            raise ConfigError(f"--language {self.language}: {self.name} has no slot {{language}}")

    @property
    def sha256(self) -> str:
        """Hash that identifies the request, in training and inference."""
        return hashlib.sha256("\0".join((INSTRUCTION, self.text, self.language or "")).encode()).hexdigest()

    def render(self, paper: str, keywords: Sequence[str], num_qas: int, structured: bool = False) -> str:
        """Renders the request for ``num_qas`` pairs about ``paper``; as JSON if ``structured``."""
        before, _, after = self._parts(keywords, num_qas, structured)
        return before + paper + after

    def paper_start(self, keywords: Sequence[str], num_qas: int, structured: bool = False) -> int:
        """Position of the paper's text in the rendered request, in characters."""
        return len(self._parts(keywords, num_qas, structured)[0])

    def matches(self, text: str) -> bool:
        """Whether ``text`` is this request, rendered for any paper and any number of pairs."""
        literals = [""]  # the text begins with the first, ends with the last, and has the others in order between them
        for literal, section in _sections(self.text):
            first, *others = _SLOT.split(literal)[::2]
            literals[-1] += first
            literals += [*others, *([""] if section is not None else [])]
        first, *middle, last = literals
        at = len(first)
        for literal in middle:
            at = text.find(literal, at)
            if at < 0:
                return False
            at += len(literal)
        return at + len(last) <= len(text) and text.startswith(first) and text.endswith(last)

    def _parts(self, keywords: Sequence[str], num_qas: int, structured: bool) -> tuple[str, str, str]:
        """The rendered text before the paper, the paper's slot, and the rendered text after it."""
        values = {
            "paper": "{paper}",
            "format": answer_format(num_qas, structured),
            "num_qas": str(num_qas),
            "pairs": "pair" if num_qas == 1 else "pairs",
            "keywords": ", ".join(name for keyword in keywords if (name := keyword.strip("[] "))),
            "language": self.language or "",
        }
        text = ""
        for literal, section in _sections(self.text):
            slot = _SECTION_SLOT.search(section or "")
            text += literal + (section or "" if slot and values[slot[1]] else "")
        values["language"] = self.language or PAPERS_LANGUAGE
        before, paper, after = text.partition("{paper}")

        def fill_slots(part: str) -> str:
            return _SLOT.sub(lambda slot: values[slot[1]], part)

        return fill_slots(before), paper, fill_slots(after)


def _sections(text: str) -> Iterator[tuple[str, str | None]]:
    """(literal text, the section behind it without its brackets), in order; None for the section behind the last."""
    *parts, rest = text.split("]]")
    literal = ""
    for part in parts:
        before, bracket, section = part.partition("[[")
        if bracket and _SECTION_SLOT.search(section):
            yield literal + before, section
            literal = ""
        else:
            literal += f"{part}]]"
    yield literal + rest, None


@cache
def default_text() -> str:
    """The text of qaray's default request."""
    return (resources.files("qaray.asking") / "request.txt").read_text(encoding="utf-8").rstrip("\n")


def default_request(language: str | None = None) -> Request:
    """qaray's default request."""
    return Request(default_text(), language)
