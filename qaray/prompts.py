"""Prompts: the one module that turns a paper into what a model reads, in training and in inference.

The budget of one prompt, in tokens:

    seq_len = prompt + room for the answer;  reserve = min(max_gen_len, max(256, 150 · num_qas))
    a prompt beyond seq_len − reserve is over-length; the answer is capped at min(max_gen_len, seq_len − prompt)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qaray.config import ConfigError, GenerateConfig
from qaray.schema import Paper, Prompt, RejectReason

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
OPENING = "Q1:"  # begins the answer of a chat model, which keeps small models within the grammar


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
                raise ConfigError(f"the prompt template must hold {slot} exactly once")

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


@dataclass(frozen=True)
class Budget:
    """Lengths of one run, in tokens."""

    seq_len: int
    max_gen_len: int
    num_qas: int

    @property
    def reserve(self) -> int:
        return min(self.max_gen_len, max(256, 150 * self.num_qas))

    @property
    def longest_prompt(self) -> int:
        return self.seq_len - self.reserve

    def answer_cap(self, prompt_tokens: int) -> int:
        return min(self.max_gen_len, self.seq_len - prompt_tokens)


@dataclass(frozen=True)
class PromptBuilder:
    """Papers to prompts: one, or with ``overlength`` split as many as it takes."""

    template: Template
    tokenizer: Tokenizer
    budget: Budget
    overlength: str = "truncate"
    structured: bool = False  # the answer is asked for as JSON

    @classmethod
    def of(cls, config: GenerateConfig, template: Template, tokenizer: Tokenizer, seq_len: int) -> PromptBuilder:
        """Raises ConfigError if not even an empty paper fits."""
        budget = Budget(seq_len, config.max_gen_len, config.num_qas)
        builder = cls(template, tokenizer, budget, config.overlength, config.structured)
        empty = builder._tokens("", [], config.num_qas)
        if budget.longest_prompt < empty + 64:
            raise ConfigError(
                f"seq_len {seq_len} leaves no room for a paper: the request takes {empty} tokens and {budget.reserve} "
                "are kept for the answer: raise --seq_len, or lower --max_gen_len or --num_qas"
            )
        return builder

    def __call__(self, paper: Paper, shard: str) -> list[Prompt]:
        """The first-attempt prompts of a paper, one a window.

        A paper that cannot be asked gives one row with an error, so that every paper has a row.
        """
        literal = self.tokenizer.literal
        keywords = [literal(keyword) for keyword in paper["keywords"]]
        paper = Paper(**{**paper, "txt": literal(paper["txt"]), "keywords": keywords})
        whole = self._prompt(paper, shard, 0, self.budget.num_qas, (0, len(paper["txt"])))
        if whole["prompt_tokens"] <= self.budget.longest_prompt:
            return [whole]
        if self.overlength == "skip":
            detail = f"the prompt has {whole['prompt_tokens']} tokens, {self.budget.longest_prompt} fit"
            return [_without_text(whole, f"{RejectReason.OVER_LENGTH}: {detail}")]
        spans = self.tokenizer.spans(paper["txt"])
        room = self.budget.longest_prompt - self._tokens("", paper["keywords"], self.budget.num_qas)
        if room < 16:
            detail = f"the keywords leave {room} tokens for the text"
            return [_without_text(whole, f"{RejectReason.OVER_LENGTH}: {detail}")]
        if self.overlength == "truncate":
            prompt, kept = self._fit(paper, shard, 0, self.budget.num_qas, spans, 0, room)
            return [Prompt(**{**prompt, "truncated_tokens": len(spans) - kept})]
        return self._windows(paper, shard, spans, room)

    def safely(self, paper: Paper, shard: str) -> list[Prompt]:
        """The same; a paper that breaks the tokenizer or the template gives a row with the error, and no other is
        lost."""
        try:
            return self(paper, shard)
        except Exception as error:
            empty = Paper(**{**paper, "txt": "", "keywords": []})
            row = self._prompt(empty, shard, 0, self.budget.num_qas, (0, 0))
            return [_without_text(row, f"{RejectReason.ENGINE_ERROR}: {type(error).__name__}: {error}")]

    def _windows(self, paper: Paper, shard: str, spans: Sequence[tuple[int, int]], room: int) -> list[Prompt]:
        """Windows of nearly equal length that cover the text and share out the pairs, one at least each."""
        count = -(-len(spans) // room)
        while True:
            target = -(-len(spans) // count)
            share = [self.budget.num_qas // count + (w < self.budget.num_qas % count) for w in range(count)]
            prompts, first = [], 0
            for window in range(count):
                prompt, after = self._fit(paper, shard, window, max(1, share[window]), spans, first, target)
                prompts.append(prompt)
                first = after
            if first >= len(spans):
                return [Prompt(**{**p, "windows": count}) for p in prompts]
            count += 1  # a window took less than its share: one more

    def _fit(
        self,
        paper: Paper,
        shard: str,
        window: int,
        num_qas: int,
        spans: Sequence[tuple[int, int]],
        first: int,
        room: int,
    ) -> tuple[Prompt, int]:
        """The prompt over at most ``room`` tokens of the text from token ``first`` on, and the first token after it."""
        after = min(first + room, len(spans))
        while True:
            start = spans[first][0] if first else 0
            end = spans[after - 1][1] if after < len(spans) else len(paper["txt"])
            prompt = self._prompt(paper, shard, window, num_qas, (start, end))
            excess = prompt["prompt_tokens"] - self.budget.longest_prompt
            if excess <= 0:
                return prompt, after
            after = max(first + 1, after - excess)  # tokens merge differently at the cut

    def _prompt(self, paper: Paper, shard: str, window: int, num_qas: int, span: tuple[int, int]) -> Prompt:
        start, end = span
        text = self.template.render(INSTRUCTION, self._request(paper["txt"][start:end], paper["keywords"], num_qas))
        ids = self.template.encode(text, self.tokenizer)
        prompt_tokens = len(ids) or self.tokenizer.count([text])[0]
        # The paper's place in the prompt: after the template's head, the instruction and the request's first line.
        paper_start = text.index(head := REQUEST[: REQUEST.index("{paper}")]) + len(head)
        return Prompt(
            doi=paper["doi"],
            shard=shard,
            row=paper["row"],
            window=window,
            windows=1,
            attempt=1,
            num_qas=num_qas,
            start=start,
            end=end,
            paper_start=paper_start,
            paper_end=paper_start + end - start,
            prompt=text,
            token_ids=ids,
            opening=self.template.opening,
            prompt_tokens=prompt_tokens,
            truncated_tokens=0,
            max_tokens=max(0, self.budget.answer_cap(prompt_tokens)),
            error=None,
        )

    def _tokens(self, text: str, keywords: Sequence[str], num_qas: int) -> int:
        rendered = self.template.render(INSTRUCTION, self._request(text, keywords, num_qas))
        return len(self.template.encode(rendered, self.tokenizer)) or self.tokenizer.count([rendered])[0]

    def _request(self, text: str, keywords: Sequence[str], num_qas: int) -> str:
        return request(text, keywords, num_qas, self.structured)

    def text(self, paper: Paper, start: int, end: int, num_qas: int) -> str:
        """The rendered prompt over ``txt[start:end]`` as it was asked, without the answer's opening."""
        window = self.tokenizer.literal(paper["txt"][start:end])
        keywords = [self.tokenizer.literal(keyword) for keyword in paper["keywords"]]
        rendered = self.template.render(INSTRUCTION, self._request(window, keywords, num_qas))
        return rendered.removesuffix(self.template.opening)


def _without_text(prompt: Prompt, error: str) -> Prompt:
    return Prompt(**{**prompt, "prompt": "", "token_ids": [], "max_tokens": 0, "error": error})
