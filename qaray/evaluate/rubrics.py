"""What a judge is asked about the pairs of a paper.

A prompt is a prefix that many questions share, a suffix, and the choices that the scorer is given:

    similarity   prefix: the rubric                       suffix: two questions           choices: 0, 10, … 100
    RACAR        prefix: the rubrics, then the paper      suffix: pair, then a dimension  choices: 1 … 5

The corpus shares the rubrics, 50 judgements a paper, and five judgements a pair. No text is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from qaray.asking.templates import Template, Tokenizer
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
SHARE_FOR_PAIRS = 0.25  # of the judge's context, at most; the paper has the rest


class AskedQuestions(TypedDict):
    """Two questions of a paper that are compared, in both orders."""

    i: Int32
    j: Int32


class SimilarityTargets(TypedDict):
    """What the suffixes of a similarity request are about: both orders of ``asked``, then the controls."""

    places: list[Int32]  # numbers of the suffixes that fit the judge's context
    asked: list[AskedQuestions]
    cosines: list[float | None]  # of all pairs of questions
    control: list[str]  # kinds
    pair_ids: list[str]  # [Q]


class AskedPair(TypedDict):
    """A pair that is graded; ``swapped``: with an answer of another paper."""

    qa: Int32
    swapped: bool


class RacarTargets(TypedDict):
    """What the suffixes of a RACAR request are about, five to a pair."""

    asked: list[AskedPair]
    too_long: list[Int32]  # indices of pairs that are not asked
    empty: list[Int32]
    lost: int  # tokens of the paper that the judge's context does not hold
    questions: list[str]  # [Q]
    pair_ids: list[str]  # [Q]


@dataclass(frozen=True)
class JudgePrompts:
    """Papers with their pairs to requests for the scorer, and its answers to scores."""

    template: Template
    tokenizer: Tokenizer
    seq_len: int  # of the judge, tokens
    judge_above: float = -1.0

    def similarity(
        self, paper: Paired, cosines: np.ndarray, others: Sequence[str]
    ) -> tuple[ScoreRequest, SimilarityTargets]:
        """Both orders of all pairs of questions that are near enough, and the control against ``others``, questions of
        other papers (none: no control)."""
        questions = [self._literal(pair["Q"]) for pair in paper["pairs"]]
        asked = [
            (i, j)
            for i, j in similarity.question_pairs(len(questions))
            if questions[i].strip() and questions[j].strip() and not cosines[i, j] < self.judge_above
        ]
        texts = [(questions[a], questions[b]) for i, j in asked for a, b in ((i, j), (j, i))]
        control = [
            (kind, question, second)
            for question, other in zip([q for q in questions if q.strip()], others, strict=False)
            for kind, second in zip(CONTROL_KINDS, (question, paraphrase(question), self._literal(other)), strict=True)
        ]
        texts += [(first, second) for _, first, second in control]
        prefix, tail = self._frame(SIMILARITY_RUBRIC)
        suffixes = [TWO_QUESTIONS.format(first=a, second=b) + tail + "Score: " for a, b in texts]
        fits = self._that_fit(prefix, suffixes)
        return (
            ScoreRequest(
                prefix=prefix,
                suffixes=[suffixes[place] for place in fits],
                choices=[f"{level}\n" for level in similarity.LEVELS],  # the line's end tells 10 from 100
            ),
            SimilarityTargets(
                places=fits,
                asked=[AskedQuestions(i=i, j=j) for i, j in asked],
                cosines=[_finite(cosines[i, j]) for i, j in similarity.question_pairs(len(questions))],
                control=[kind for kind, _, _ in control],
                pair_ids=[pair["pair_id"] for pair in paper["pairs"]],
            ),
        )

    def racar(self, paper: Paired, others: Sequence[str]) -> tuple[ScoreRequest, RacarTargets]:
        """All dimensions of every pair, and the control: the first pairs with ``others``, answers of other papers."""
        pairs, literal = paper["pairs"], self._literal
        places = [i for i, pair in enumerate(pairs) if pair["Q"].strip() and pair["A"].strip()]
        asked = [(i, literal(pairs[i]["Q"]), literal(pairs[i]["A"]), False) for i in places]
        asked += [(i, literal(pairs[i]["Q"]), literal(other), True) for i, other in zip(places, others, strict=False)]
        head, tail = self._frame(RACAR_RUBRIC)
        heads = [BEFORE_PAIR + ONE_PAIR.format(question=q, answer=a) + tail for _, q, a, _ in asked]
        lengths = self.tokenizer.count(heads) if heads else []
        most = int(self.seq_len * SHARE_FOR_PAIRS)
        kept = [n for n, length in enumerate(lengths) if length <= most]
        room = self.seq_len - max((lengths[n] for n in kept), default=0) - self.tokenizer.count([head])[0] - 32
        text, lost = self._cut(literal(paper["txt"]), room)
        suffixes = [f"{heads[n]}{name.capitalize()}: " for n in kept for name in DIMENSIONS]
        return (
            ScoreRequest(prefix=head + text, suffixes=suffixes, choices=[str(level) for level in racar.LEVELS]),
            RacarTargets(
                asked=[AskedPair(qa=asked[n][0], swapped=asked[n][3]) for n in kept],
                too_long=sorted({asked[n][0] for n in set(range(len(asked))) - set(kept) if not asked[n][3]}),
                empty=[i for i in range(len(pairs)) if i not in set(places)],
                lost=lost,
                questions=[pair["Q"] for pair in pairs],
                pair_ids=[pair["pair_id"] for pair in pairs],
            ),
        )

    def _frame(self, rubric: str) -> tuple[str, str]:
        """What comes before what is judged, and between that and the grade: the template's ends."""
        border = "\0"
        head, tail = self.template.render(INSTRUCTION, rubric + border).split(border)
        return head, tail if tail[-1:].isspace() else tail + "\n"

    def _that_fit(self, prefix: str, suffixes: list[str]) -> list[int]:
        if not suffixes:
            return []
        room = self.seq_len - self.tokenizer.count([prefix])[0] - 16
        return [n for n, length in enumerate(self.tokenizer.count(suffixes)) if length <= room]

    def _cut(self, text: str, room: int) -> tuple[str, int]:
        """The text's first ``room`` tokens, and how many are lost."""
        spans = self.tokenizer.spans(text)
        if len(spans) <= room:
            return text, 0
        kept = max(1, room)
        return text[: spans[kept - 1][1]], len(spans) - kept

    def _literal(self, text: str) -> str:
        return self.tokenizer.literal(text.replace("\0", " "))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
