"""The echo engine: question-answer pairs from the paper's own sentences, without a model, for dry runs and scale tests.

Deterministic: the same prompt gives the same answer.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from qaray.asking.grammar import question_key, write_pairs
from qaray.engines.base import Engine
from qaray.engines.guarded import guarded_answers, guarded_scores
from qaray.engines.pool import worker_name
from qaray.run.cluster import LIGHT
from qaray.run.stopping import StopCheck
from qaray.run.tries import Guard, Tries
from qaray.schema import (
    COMPLETION_SCHEMA,
    QA,
    REQUEST_COLUMNS,
    FinishReason,
    Prompt,
    complete,
    failure_of,
    scored,
    table,
)

if TYPE_CHECKING:
    from ray.data import Dataset

_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\"“‘'])|\n\s*\n?")
_WORD = re.compile(r"\w+|[^\w\s]")
# "Subject verb …": the question asks about the words before the verb.
_SUBJECT = re.compile(
    r"^(?:(?:However|Moreover|Furthermore|Therefore|Thus|Hence|Also|In addition|For example),?\s+)?"
    r"(?P<subject>(?:[^\s,;()]+\s+){0,7}?[^\s,;()]+)\s+(?P<verb>is|are|was|were|has|have|had|can|could|may|must|requires?"
    r"|shows?|gives?|provides?|uses?|depends?|occurs?|forms?|contains?|converts?|follows?|becomes?)\b"
)
_PRONOUNS = frozenset(
    ["it", "this", "that", "these", "those", "they", "there", "we", "he", "she", "which", "such", "both", "one"]
)
_QUESTIONS = {
    "is": "What is {}?", "are": "What are {}?", "was": "What was {}?", "were": "What were {}?",
    "has": "What does {} have?", "have": "What do {} have?",
}  # fmt: skip
ROWS, PACED_ROWS = 500, 16  # prompts per block, without and with a delay per answer
SHORTEST_USED = 4000  # minimum characters of the paper searched per requested pair


class EchoEngine(Engine):
    def __init__(self, should_stop: StopCheck, tries: Tries, seconds: float = 0.0) -> None:
        """``seconds``: delay per answer."""
        self.should_stop, self.tries, self.seconds = should_stop, tries, seconds

    def describe(self) -> str:
        return "echo: pairs from the papers' own sentences, no model"

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        rows = PACED_ROWS if self.seconds else ROWS
        return prompts.repartition(target_num_rows_per_block=rows, strict=True).map_batches(
            _Echo(self.should_stop, self.tries, self.seconds),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=LIGHT,
            zero_copy_batch=True,
        )

    def score(self, requests: Dataset) -> Dataset:
        return requests.map_batches(
            _EchoScores(self.should_stop, self.tries),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=LIGHT,
            zero_copy_batch=True,
        )


@dataclass(frozen=True)
class _Echo:
    should_stop: StopCheck
    tries: Tries
    seconds: float = 0.0  # delay per answer

    def __call__(self, prompts: pa.Table) -> pa.Table:
        return guarded_answers(Guard(self.tries), prompts, self._answers)

    def _answers(self, prompts: pa.Table) -> pa.Table:
        rows: list[Any] = []
        for prompt in prompts.to_pylist():
            if (self.seconds or not rows) and self.should_stop():  # per block, or per answer if delayed
                break
            rows.append(_answer(prompt, self.seconds))
        return table(rows, COMPLETION_SCHEMA)


def _answer(prompt: Prompt, seconds: float) -> Any:
    if failure := failure_of(prompt):
        return complete(prompt, failure=failure)
    start, began = time.perf_counter(), time.time()
    time.sleep(seconds)
    text = prompt["prompt"][prompt["paper_start"] : prompt["paper_end"]]
    words, finish = [], FinishReason.STOP
    output = write_pairs(echo_pairs(text, prompt["num_qas"]))
    words = list(_WORD.finditer(output))
    if len(words) > prompt["max_tokens"]:
        finish = FinishReason.LENGTH
        output = output[: words[prompt["max_tokens"]].start()]
    return complete(
        prompt,
        output,
        output_tokens=min(len(words), prompt["max_tokens"]),
        finish_reason=finish,
        seconds=time.perf_counter() - start,
        began=began,
        worker=worker_name(),
    )


def echo_pairs(text: str, num_qas: int) -> list[QA]:
    """At most ``num_qas`` pairs in text order: sentences, preferably with numbers, and questions that they answer."""
    max_chars = max(num_qas * SHORTEST_USED, len(text) // 8)
    sentences = [" ".join(part.split()) for part in _SENTENCE_BREAK.split(text[:max_chars]) if part and part.strip()]
    questions = [_question(sentence) for sentence in sentences]
    ranked = sorted(range(len(sentences)), key=lambda i: (questions[i] is None, -_worth(sentences[i]), i))
    pairs, seen = [], set()
    for i in ranked:
        question = questions[i] or _plain_question(sentences[i])
        if (key := question_key(question)) not in seen:
            seen.add(key)
            pairs.append((i, question, sentences[i]))
            if len(pairs) == num_qas:
                break
    return [QA(Q=question, A=sentence) for _, question, sentence in sorted(pairs)]


def _worth(sentence: str) -> int:
    """Rank of a sentence: its count of numbers, up to 4, plus 1 for a length of 60 to 400 characters."""
    return min(4, len(re.findall(r"\d+(?:[.,]\d+)?", sentence))) + (60 <= len(sentence) <= 400)


def _plain_question(sentence: str) -> str:
    """A question for a sentence without a recognised subject: it quotes the sentence's first words."""
    words = sentence.split()
    return f"What is stated about “{' '.join(words[:6]).rstrip('.,;:')}”?"


def _question(sentence: str) -> str | None:
    """A question that the sentence answers; None if its subject is not self-contained."""
    match = _SUBJECT.match(sentence)
    if not match or len(sentence) < 40:
        return None
    subject = match["subject"]
    words = subject.split()
    if words[0].lower() in _PRONOUNS or len(subject) < 4:
        return None
    if words[0] in (
        "The",
        "A",
        "An",
        "In",
        "For",
        "At",
        "By",
        "On",
        "With",
        "Its",
        "Their",
        "Each",
        "Every",
        "Some",
    ):
        subject = words[0].lower() + subject[len(words[0]) :]
    return _QUESTIONS.get(match["verb"], "What is known about {}?").format(subject)


@dataclass(frozen=True)
class _EchoScores:
    should_stop: StopCheck
    tries: Tries

    def __call__(self, requests: pa.Table) -> pa.Table:
        return guarded_scores(Guard(self.tries), requests, self._scores)

    def _scores(self, requests: pa.Table) -> pa.Table:
        if self.should_stop():
            requests = requests.slice(0, 0)
        rows = requests.select(list(REQUEST_COLUMNS)).to_pylist()
        answers = [[echo_logprobs(r["prefix"], suffix, r["choices"]) for suffix in r["suffixes"]] for r in rows]
        return scored(requests, answers, [None] * len(rows))


def echo_logprobs(prefix: str, suffix: str, choices: Sequence[str]) -> list[float]:
    """Pseudo-random log-probabilities [choices] from a hash of the prompt, in place of a judge's."""
    digest = hashlib.sha256(f"{prefix}\0{suffix}".encode("utf-8", "surrogatepass")).digest()
    weights = [1 + digest[i % len(digest)] for i in range(len(choices))]
    return [math.log(weight / sum(weights)) for weight in weights]
