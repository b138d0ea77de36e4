"""Prompt templates: how an instruction and its input become the text that a model reads, and its tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qaray.asking.grammar import OPENING
from qaray.config import ConfigError

# The seed's template, byte for byte (README of SciQAG; the blank after <</SYS>> and the blank line are its own).
LLAMA2 = """[INST] <<SYS>>
You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  \
Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. \
Please ensure that your responses are socially unbiased and positive in nature.

If a question does not make any sense, or is not factually coherent, explain why instead of answering something \
not correct. If you don't know the answer to a question, please don't share false information.
<</SYS>> 

{instruction}
{input} [/INST]"""
LLAMA2_NO_INPUT = "[INST]{instruction}[/INST]"  # LongLoRA's form of an example without input


class Tokenizer(Protocol):
    """What prompts need of a tokenizer."""

    bos_id: int | None
    adds_bos: bool  # whether the tokenizer puts BOS first by its own convention

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no special tokens added."""
        ...

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        """(start, end) in characters of each token of ``text``, [T]."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, [P]."""
        ...

    def literal(self, text: str) -> str:
        """``text`` at the same length, with nothing in it that would be read as a special token."""
        ...


class WordTokenizer:
    """Words and punctuation marks: the tokens of an engine without a model."""

    bos_id: int | None = None
    adds_bos = False
    _token = re.compile(r"\w+|[^\w\s]")

    def encode(self, text: str) -> list[int]:
        return []

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [m.span() for m in self._token.finditer(text)]

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(self._token.findall(text)) for text in texts]

    def literal(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Template:
    """How an instruction and its input become the text that a model reads.

    ``name``: llama2, chat or file. ``text``: with {instruction} and {input}; for chat the user's turn is put in their
    place. ``opening``: what the answer begins with, part of the prompt.
    """

    name: str
    text: str
    opening: str = ""
    source: str = ""  # what the text was rendered from, where that may differ from day to day

    def __post_init__(self) -> None:
        for slot in ("{instruction}", "{input}"):
            if self.text.count(slot) != 1:
                raise ConfigError(f"the prompt template must contain {slot} exactly once")

    @property
    def sha256(self) -> str:
        """Identifies the template: the same in training and inference."""
        return hashlib.sha256(f"{self.source or self.text}\0{self.opening}".encode()).hexdigest()

    def render(self, instruction: str, input: str = "") -> str:
        """The text before the answer. Slots inside the instruction or the input are left alone."""
        text = LLAMA2_NO_INPUT + "{input}" if self.name == "llama2" and not input else self.text
        parts = re.split(r"(\{instruction\}|\{input\})", text)
        return "".join({"{instruction}": instruction, "{input}": input}.get(p, p) for p in parts) + self.opening

    def encode(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Token ids of a rendered text, BOS exactly once where the model has one.

        A chat template writes its own BOS or none; to the others it is added.
        """
        ids = tokenizer.encode(text)
        bos = tokenizer.bos_id
        if bos is None:
            return ids
        while len(ids) > 1 and ids[0] == ids[1] == bos:
            ids = ids[1:]
        if ids[:1] != [bos] and (tokenizer.adds_bos or self.name != "chat"):
            ids = [bos, *ids]
        return ids


def chat_template(turn: str, source: str = "") -> Template:
    """The template of a model's own chat format.

    ``turn``: its rendering of one user message, ``{instruction}\\n{input}``, with the assistant's turn opened.
    ``source``: the format itself, which identifies it: some write the day's date. A turn that opens a thought gets no
    opening of the answer.
    """
    thinks = turn.rstrip().endswith(("<think>", "<thinking>", "<reasoning>"))
    return Template("chat", turn, opening="" if thinks else OPENING, source=source)
