"""Prompt templates: render an instruction and its input as the text and tokens of a prompt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from qaray.asking.grammar import OPENING
from qaray.config import ConfigError

# The system text of the seed's template, byte for byte (README of SciQAG).
SYSTEM = """You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being \
safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. \
Please ensure that your responses are socially unbiased and positive in nature.

If a question does not make any sense, or is not factually coherent, explain why instead of answering something \
not correct. If you don't know the answer to a question, please don't share false information."""
# The seed's template, with its space after <</SYS>> and its blank line.
LLAMA2 = f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>> \n\n{{instruction}}\n{{input}} [/INST]"
LLAMA2_NO_INPUT = "[INST]{instruction}[/INST]"  # LongLoRA's template for examples without input


# What chat formats mark turns with: [INST], <<SYS>>, <|im_start|>, <start_of_turn>, "### Response:", "ASSISTANT:".
_SLOTS = r"\{instruction\}|\{input\}"
_MARKER = re.compile(
    r"<<?/?[\w-]{1,40}>>?|<[|｜][^<>\s]{1,60}[|｜]>|\[/?[A-Z_]{2,30}\]|^#{2,6} ?[A-Z][\w ]{1,40}:|\b[A-Z]{4,20}:", re.M
)


class Tokenizer(Protocol):
    """The tokenizer interface that prompts require."""

    bos_id: int | None
    adds_bos: bool  # whether the tokenizer adds BOS by default

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without added special tokens, [T]."""
        ...

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        """(start, end) of each token of ``text``, in characters, [T]."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, [P]."""
        ...

    def literal(self, text: str) -> str:
        """``text`` changed so that no part is read as a special token. Its length in characters stays the same."""
        ...


class WordTokenizer:
    """Splits text into words and punctuation marks, for an engine without a model."""

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


class EstimatedTokenizer:
    """Estimates tokens without a tokenizer: pieces of words of up to six Latin letters, three digits, or one sign."""

    bos_id: int | None = None
    adds_bos = False
    _token = re.compile(r"\s*(?:[A-Za-z]{1,6}|\d{1,3}|[^\W\d_A-Za-z]{1,2}|[^\w\s]|_)")
    # What chat formats mark turns with: most servers read it as special tokens, even in a message.
    _special = re.compile(
        r"</?s>|<(?=[|｜][^<>\s]{1,60}[|｜]>)|<(?=(?:start|end)_of_\w{1,20}>)|<(?=</?SYS>>)|\[(?=/?INST\])"
    )

    def encode(self, text: str) -> list[int]:
        return []

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [m.span() for m in self._token.finditer(text)]

    def count(self, texts: Sequence[str]) -> list[int]:
        return [sum(1 for _ in self._token.finditer(text)) for text in texts]

    def literal(self, text: str) -> str:
        return self._special.sub(lambda token: "‹" + token[0][1:], text)


@dataclass(frozen=True)
class Template:
    """A prompt template with the slots {instruction} and {input}.

    Raises ConfigError unless the text contains each slot exactly once.
    """

    name: str  # llama2, chat, messages or file
    text: str  # for chat, the rendered user turn with the slots
    opening: str = ""  # start of the answer, appended to the prompt
    source: str = ""  # the chat template that text was rendered from: the rendering may contain the date

    def __post_init__(self) -> None:
        for slot in ("{instruction}", "{input}"):
            if self.text.count(slot) != 1:
                raise ConfigError(f"the prompt template must contain {slot} exactly once")

    @property
    def sha256(self) -> str:
        """Hash that identifies the template, in training and inference."""
        return hashlib.sha256(f"{self.source or self.text}\0{self.opening}".encode()).hexdigest()

    @cached_property
    def _marker(self) -> re.Pattern[str]:
        """Matches the markers that the template's own text uses."""
        own = sorted(set(_MARKER.findall(re.sub(_SLOTS, "", self.text))), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, own)) or r"(?!)")

    def literal(self, text: str, tokenizer: Tokenizer) -> str:
        """``text`` changed so that no part is read as a special token or as a marker of the template.

        Its length in characters stays the same.
        """
        return self._marker.sub(lambda marker: "‹" + marker[0][1:], tokenizer.literal(text))

    def render(self, instruction: str, input: str = "") -> str:
        """Renders the prompt, including the opening. Slots inside the instruction or the input are not replaced."""
        text = LLAMA2_NO_INPUT + "{input}" if self.name == "llama2" and not input else self.text
        parts = re.split(f"({_SLOTS})", text)
        return "".join({"{instruction}": instruction, "{input}": input}.get(p, p) for p in parts) + self.opening


def prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a rendered prompt, [T], as the model reads them in training, generation and judging."""
    return with_bos(tokenizer.encode(text), tokenizer)


def with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text with BOS where the tokenizer adds it by default; once if the text begins with it as well."""
    bos = tokenizer.bos_id
    if bos is None:
        return ids
    while len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return [bos, *ids] if tokenizer.adds_bos and ids[:1] != [bos] else ids


# The user message of a chat endpoint. The system text that goes with it identifies the template, too.
MESSAGES = Template("messages", "{instruction}\n{input}", source=f"{SYSTEM}\0{{instruction}}\n{{input}}")


def chat_template(turn: str, source: str = "") -> Template:
    """The template of a model's own chat format.

    If the turn opens a reasoning block, the template has no opening.

    Args:
        turn: Rendering of the user message ``{instruction}\\n{input}``, with the generation prompt.
        source: The model's chat template, which identifies this template: some renderings contain the date.
    """
    thinks = turn.rstrip().endswith(("<think>", "<thinking>", "<reasoning>"))
    return Template("chat", turn, opening="" if thinks else OPENING, source=source)
