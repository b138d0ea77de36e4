"""Prompts that ask a judge about the pairs of a paper.

A prompt is a prefix shared by many questions, a suffix, and the choices given to the scorer:

    similarity   prefix: the rubric                       suffix: two questions           choices: 0, 10, … 100
    RACAR        prefix: the rubrics, then the paper      suffix: pair, then a dimension  choices: 1 … 5

The rubrics are shared by the whole corpus, a paper by 50 judgements, and a pair by five. No text is generated.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from qaray.asking.templates import Template, Tokenizer
from qaray.corpus.records import has_visible
from qaray.evaluate.controls import CONTROL_KINDS, paraphrase
from qaray.metrics import racar, similarity
from qaray.schema import DIMENSIONS, Int32, Paired, ScoreRequest

INSTRUCTION = "You are a strict and fair examiner in the natural sciences. You answer with the grade only."
SIMILARITY_RUBRIC = """Two exam questions are compared. How far do they ask for the same thing? The score is one of 0, \
10, 20 and so on up to 100.
100: the same question in other words; one answer serves both.
50: they overlap; the answer to one holds part of the answer to the other.
0: they ask for different things, even about the same subject. Opposite aspects of one subject (benefits and \
drawbacks, gain and loss) are different things.

"""
TWO_QUESTIONS = "Question 1: {first}\nQuestion 2: {second}"
RACAR_RUBRIC = """A question-answer pair that was written from a scientific paper is graded. Each grade is a whole \
number from 1, the worst, to 5, the best.
Relevance: the pair is about the science of the paper, and the answer belongs to the question.
Agnosticism: the question can be understood by an expert who has never seen the paper; it refers to no figure and no \
"this study".
Completeness: the answer covers all that is asked, with the numbers and conditions that it needs.
Accuracy: all that the answer states agrees with the paper; nothing is made up.
Reasonableness: question and answer are coherent, and the answer follows by sound reasoning.

The paper:
"""
BEFORE_PAIR = "\n\nThe pair:\n"
ONE_PAIR = "Question: {question}\nAnswer: {answer}"
SHARE_FOR_PAIRS = 0.25  # maximum share of the judge's context; the paper has the rest
SUFFIXES_AT_ONCE = 1_000  # suffixes whose tokens are counted together


class AskedQuestions(TypedDict):
    """Two questions of a paper, compared in both orders."""

    i: Int32
    j: Int32


class SimilarityTargets(TypedDict):
    """Targets of the suffixes of a similarity request: both orders of ``asked``, then the controls."""

    places: list[Int32]  # indices of the suffixes that fit the judge's context
    asked: list[AskedQuestions]
    cosines: list[float | None]  # of the question pairs that are compared
    control: list[str]  # kinds of the controls
    pair_ids: list[str]  # [Q]


class AskedPair(TypedDict):
    """A pair to grade; ``swapped``: with an answer of another paper."""

    qa: Int32
    swapped: bool


class RacarTargets(TypedDict):
    """Targets of the suffixes of a RACAR request, five per pair."""

    asked: list[AskedPair]
    too_long: list[Int32]  # indices of pairs that exceed their share of the context
    empty: list[Int32]  # indices of pairs with an empty question or answer
    lost: int  # tokens of the paper beyond the judge's context
    questions: list[str]  # [Q]
    pair_ids: list[str]  # [Q]


@dataclass(frozen=True)
class JudgePrompts:
    """Makes score requests from papers with their pairs."""

    template: Template
    tokenizer: Tokenizer
    seq_len: int  # of the judge, tokens
    judge_above: float = -1.0  # minimum cosine of the questions that are judged

    def similarity(
        self, paper: Paired, cosines: Mapping[tuple[int, int], float], others: Sequence[str]
    ) -> tuple[ScoreRequest, SimilarityTargets]:
        """The request for both orders of the ``question_pairs`` not below ``judge_above``, and for the control.

        ``cosines`` of all ``question_pairs``. ``others``: questions of other papers for the control; without any there
        is none.
        """
        questions = [self._literal(pair["Q"]) for pair in paper["pairs"]]
        visible = [has_visible(question) for question in questions]
        compared = similarity.question_pairs(len(questions), paper["doi"])
        judged = [(i, j) for i, j in compared if visible[i] and visible[j] and not cosines[i, j] < self.judge_above]
        texts = [(questions[a], questions[b]) for i, j in judged for a, b in ((i, j), (j, i))]
        control = [
            (kind, question, second)
            for question, other in zip(itertools.compress(questions, visible), others, strict=False)
            for kind, second in zip(CONTROL_KINDS, (question, paraphrase(question), self._literal(other)), strict=True)
        ]
        texts += [(first, second) for _, first, second in control]
        prefix, tail = self._frame(SIMILARITY_RUBRIC)
        suffixes = self._that_fit(prefix, texts, tail + "Score: ")
        return (
            ScoreRequest(
                prefix=prefix,
                suffixes=list(suffixes.values()),
                choices=[f"{level}\n" for level in similarity.LEVELS],  # the newline distinguishes 10 from 100
            ),
            SimilarityTargets(
                places=list(suffixes),
                asked=[AskedQuestions(i=i, j=j) for i, j in judged],
                cosines=[_finite(cosines[i, j]) for i, j in compared],
                control=[kind for kind, _, _ in control],
                pair_ids=[pair["pair_id"] for pair in paper["pairs"]],
            ),
        )

    def racar(self, paper: Paired, others: Sequence[str]) -> tuple[ScoreRequest, RacarTargets]:
        """The request for all dimensions of every pair, and for the control.

        ``others``: answers of other papers; the control grades the first pairs with them.
        """
        pairs, literal = paper["pairs"], self._literal
        graded_pairs = {i for i, pair in enumerate(pairs) if has_visible(pair["Q"]) and has_visible(pair["A"])}
        places = sorted(graded_pairs)
        graded = [(i, literal(pairs[i]["Q"]), literal(pairs[i]["A"]), False) for i in places]
        graded += [(i, literal(pairs[i]["Q"]), literal(other), True) for i, other in zip(places, others, strict=False)]
        head, tail = self._frame(RACAR_RUBRIC)
        heads = [BEFORE_PAIR + ONE_PAIR.format(question=q, answer=a) + tail for _, q, a, _ in graded]
        lengths = self._lengths(heads)
        max_tokens = int(self.seq_len * SHARE_FOR_PAIRS)
        kept = [n for n, length in enumerate(lengths) if length <= max_tokens]
        room = self.seq_len - max((lengths[n] for n in kept), default=0) - self.tokenizer.count([head])[0] - 32
        text, lost = self._cut(literal(paper["txt"]), room)
        suffixes = [f"{heads[n]}{name.capitalize()}: " for n in kept for name in DIMENSIONS]
        return (
            ScoreRequest(prefix=head + text, suffixes=suffixes, choices=[str(level) for level in racar.LEVELS]),
            RacarTargets(
                asked=[AskedPair(qa=graded[n][0], swapped=graded[n][3]) for n in kept],
                too_long=sorted({graded[n][0] for n in set(range(len(graded))) - set(kept) if not graded[n][3]}),
                empty=[i for i in range(len(pairs)) if i not in graded_pairs],
                lost=lost,
                questions=[pair["Q"] for pair in pairs],
                pair_ids=[pair["pair_id"] for pair in pairs],
            ),
        )

    def _frame(self, rubric: str) -> tuple[str, str]:
        """(text before the judged content, text between it and the grade), both from the template."""
        border = "\0"
        head, tail = self.template.render(INSTRUCTION, rubric + border).split(border)
        return head, tail if tail[-1:].isspace() else tail + "\n"

    def _that_fit(self, prefix: str, texts: Sequence[tuple[str, str]], tail: str) -> dict[int, str]:
        """The suffixes of two questions that fit the judge's context, by their index in ``texts``.

        No suffix is made with a question that alone exceeds it: a question is part of a hundred suffixes.
        """
        room = self.seq_len - self.tokenizer.count([prefix])[0] - 16
        single = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
        short = {text for text, length in zip(single, self._lengths(single), strict=True) if length <= room}
        made = (
            (n, TWO_QUESTIONS.format(first=first, second=second) + tail)
            for n, (first, second) in enumerate(texts)
            if first in short and second in short
        )
        fits: dict[int, str] = {}
        while block := list(itertools.islice(made, SUFFIXES_AT_ONCE)):
            lengths = self._lengths([suffix for _, suffix in block])
            fits.update(one for one, length in zip(block, lengths, strict=True) if length <= room)
        return fits

    def _lengths(self, texts: list[str]) -> list[int]:
        return self.tokenizer.count(texts) if texts else []

    def _cut(self, text: str, room: int) -> tuple[str, int]:
        """The first ``room`` tokens of the text, at least one, and the number of tokens cut."""
        spans = self.tokenizer.spans(text)
        if len(spans) <= room:
            return text, 0
        kept = max(1, room)
        return text[: spans[kept - 1][1]], len(spans) - kept

    def _literal(self, text: str) -> str:
        return self.template.literal(text.replace("\0", " "), self.tokenizer)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
