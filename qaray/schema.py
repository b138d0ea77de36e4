"""One row type a stage: Paper → Prompt → Completion → Parsed → Paired → scores.

A row type is written once, as a ``TypedDict``; ``arrow_schema`` derives the schema of its shards and ``columns`` its
column names. Letters in shape comments: P papers, Q pairs, S sentences, T tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypedDict

import pyarrow as pa

Int32 = Annotated[int, pa.int32()]
Float32 = Annotated[float, pa.float32()]
_SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def arrow_type(annotation: Any) -> pa.DataType:
    """The Arrow type of a field: ``list[…]`` is a list, a TypedDict a struct, ``… | None`` the type itself."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return typing.get_args(annotation)[1]
    if origin is list:
        return pa.list_(arrow_type(*typing.get_args(annotation)))
    if origin in (types.UnionType, typing.Union):
        return arrow_type(next(part for part in typing.get_args(annotation) if part is not type(None)))
    if typing.is_typeddict(annotation):
        return pa.struct(list(arrow_schema(annotation)))
    return _SCALARS[annotation]


def arrow_schema(row_type: Any) -> pa.Schema:
    """The Arrow schema of a row type."""
    hints = typing.get_type_hints(row_type, include_extras=True)
    return pa.schema([(name, arrow_type(annotation)) for name, annotation in hints.items()])


@functools.cache
def columns(row_type: Any) -> tuple[str, ...]:
    """The column names of a row type, in order."""
    return tuple(typing.get_type_hints(row_type))


def table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Rows (TypedDicts) as an Arrow table of exactly that schema."""
    return pa.Table.from_pylist(rows, schema=schema)


class Outcome(str, Enum):
    """A string enum whose ``str()`` is its value, so that rows, JSON and messages agree."""

    def __str__(self) -> str:
        return str(self.value)


class RejectReason(Outcome):
    """Why a record has no pairs in the output. Every rejected row carries exactly one."""

    MISSING_KEY = "missing_key"  # doi, txt or keywords is absent, null or an empty id
    WRONG_TYPE = "wrong_type"  # a field has another type than the schema's
    EMPTY_TEXT = "empty_text"  # txt holds no visible character
    DUPLICATE_DOI = "duplicate_doi"  # an earlier record (file, position) has the same doi
    UNDECODABLE = "undecodable"  # the bytes are not text, or not a Parquet file
    NOT_JSON = "not_json"  # no JSON value at that position
    OVER_LENGTH = "over_length"  # longer than the prompt budget under --overlength skip
    ENGINE_ERROR = "engine_error"  # the engine could not answer this prompt
    PROCESS_KILLED = "process_killed"  # every process that worked on it died: see qaray.run.tries
    NO_PAIRS = "no_pairs"  # no attempt gave a single question-answer pair
    NO_PAPER = "no_paper"  # an output whose doi is none of the papers'
    NO_OUTPUT = "no_output"  # a paper that no output belongs to


class FinishReason(Outcome):
    """Why an engine stopped writing."""

    STOP = "stop"  # end of text, or the answer grammar was complete
    LENGTH = "length"  # the token limit
    REPETITION = "repetition"  # the text ran in a loop and was cut


class ParseStatus(Outcome):
    """What the parser made of a completion."""

    COMPLETE = "complete"  # at least as many pairs as asked for
    SHORT = "short"  # fewer pairs, but the text ended of itself
    TRUNCATED = "truncated"  # fewer pairs, and the text was cut off
    MALFORMED = "malformed"  # no pair at all


class ScoreReason(Outcome):
    """Why a pair or a paper has no score."""

    NO_PAIRS = "no_pairs"  # the paper has none
    FEWER_THAN_TWO_PAIRS = "fewer_than_two_pairs"  # no two questions to compare
    EMPTY_QUESTION = "empty_question"
    EMPTY_ANSWER = "empty_answer"
    OVER_LENGTH = "over_length"  # longer than the judge's context
    NOT_FINITE = "not_finite"  # the model's values are NaN or infinite
    ENGINE_ERROR = "engine_error"  # the engine could not answer
    PROCESS_KILLED = "process_killed"  # every process that worked on it died: see qaray.run.tries


class Failure(NamedTuple):
    """Why a row has no result: the columns ``reason`` and ``detail``, both null where it has one."""

    reason: str  # a RejectReason or a ScoreReason
    detail: str = ""  # one sentence for the user

    @classmethod
    def of(cls, reason: Outcome, error: BaseException | str = "") -> Failure:
        """A failure with the first line of an error's message."""
        detail = str(error).strip().split("\n")[0][:500]
        if not detail and isinstance(error, BaseException):
            detail = type(error).__name__
        return cls(str(reason), detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def failure_of(row: Mapping[str, Any]) -> Failure | None:
    """The failure that a row records, None for a row with a result."""
    return None if row["reason"] is None else Failure(row["reason"], row["detail"] or "")


def failed(failure: Failure | None) -> dict[str, str | None]:
    """The columns ``reason`` and ``detail``."""
    return {"reason": failure and failure.reason, "detail": failure and failure.detail}


class QA(TypedDict):
    """A question and its answer as a text holds them."""

    Q: str
    A: str


class Pair(QA):
    """A question and its answer, under the keys of the published data, and their id."""

    pair_id: str


def pair_id(
    doi: str,
    ordinal: int,
    window: int | None = None,
    attempt: int | None = None,
    anchor: int | None = None,
    sample: int | None = None,
) -> str:
    """The id of a pair: 20 hexadecimal digits of the SHA-256 of where it comes from.

    Args:
        doi: The paper.
        ordinal: The pair's number in its answer, from 1; for data made elsewhere, its number in the paper's list.
        window, attempt, anchor, sample: The request that the answer belongs to; None where there is none.
    """
    origin = json.dumps([doi, window, attempt, anchor, sample, ordinal])
    return hashlib.sha256(origin.encode()).hexdigest()[:20]


def identified(pairs: Sequence[QA], doi: str, window: int | None = None, attempt: int | None = None) -> list[Pair]:
    """The pairs of one answer with their ids."""
    return [
        Pair(Q=pair["Q"], A=pair["A"], pair_id=pair_id(doi, ordinal, window, attempt))
        for ordinal, pair in enumerate(pairs, start=1)
    ]


class Paper(TypedDict):
    """One accepted paper."""

    row: int  # position among the accepted papers of this run, from 0
    doi: str  # opaque id, unique in the run
    file: str  # input file that the paper came from
    position: int  # record number within that file, from 0
    tokens: int  # tokens of txt alone, under the run's tokenizer
    source: str | None
    abstract: str | None
    keywords: list[str]
    txt: str
    title: str | None


class Rejected(TypedDict):
    """A record that yields no pairs, and why."""

    doi: str | None
    file: str | None
    position: int | None
    stage: str  # "ingest", "generate" or "parse"
    reason: str  # a RejectReason
    detail: str


class PromptKey(TypedDict):
    """What identifies a request to an engine and where it comes from; the key is (doi, window, attempt)."""

    doi: str
    shard: str  # name of the paper shard, which names the generation shards too
    row: int
    window: Int32  # 0 but for --overlength split
    windows: Int32  # of the paper, in all
    attempt: Int32  # from 1
    num_qas: Int32  # pairs asked of this window
    start: int  # first character of txt in the prompt
    end: int  # one past the last character of txt in the prompt
    prompt_tokens: int  # tokens of the prompt, BOS included
    truncated_tokens: int  # tokens of the paper that no window of it holds


class Prompt(PromptKey):
    """One request to an engine. With a failure the engine passes it through."""

    paper_start: int  # where txt[start:end] lies in `prompt`: characters
    paper_end: int
    prompt: str  # the rendered text, as the model reads it
    token_ids: list[Int32]  # its tokens, BOS included once; empty where the engine has no tokenizer
    opening: str  # first characters of the answer, which the prompt ends with
    max_tokens: Int32  # cap on the answer, in tokens
    reason: str | None
    detail: str | None


class Completion(PromptKey):
    """An engine's answer to a prompt."""

    output: str  # the answer's text, `opening` included
    output_tokens: int  # tokens written by the model, EOS not counted
    finish_reason: str | None  # a FinishReason; null with a failure
    seconds: float  # from admission into a batch to the last token
    prefill_seconds: float  # of them, up to the first token: the prompt is read
    began: float  # admission into a batch, seconds since the epoch
    worker: str  # which engine answered: "host:process", or an endpoint's address
    reason: str | None  # a RejectReason
    detail: str | None


class Parsed(Completion):
    """A completion and its pairs: the row of OUT/generations."""

    status: str  # a ParseStatus
    pairs: list[Pair]


class Paired(TypedDict):
    """A paper with its pairs, to be evaluated."""

    doi: str
    shard: str  # name of the shard that it was read from, which names its scores' shards too
    digest: str  # of what the scores depend on: a paper with another digest is measured again
    title: str | None
    txt: str
    pairs: list[Pair]


class IngestedPair(Paper):
    """A paper of a processed output, as the evaluation's folder keeps it."""

    pairs: list[Pair]
    digest: str


class ScoreRequest(TypedDict):
    """Questions to the scorer that share a prefix: how likely is each choice after prefix + suffix?

    A dataset of them may have further columns: they come back with the answer.
    """

    prefix: str  # read once; neighbouring rows that begin alike share that part too
    suffixes: list[str]
    choices: list[str]


class ScoreResult(TypedDict):
    """The scorer's answer."""

    logprobs: list[list[float]] | None  # natural log of P(choice | prefix, suffix), [suffixes][choices]; not normalised
    reason: str | None  # set: no logprobs
    detail: str | None


class ScoreKey(TypedDict):
    """The paper that scores belong to."""

    doi: str
    digest: str


class Evidence(TypedDict):
    """A sentence of the paper that supports a pair."""

    sentence: Int32  # its number
    text: str
    score: Float32  # cosine


class Coverage(ScoreKey):
    """Row of coverage.parquet, one a paper."""

    pair_ids: list[str]  # [Q]
    sentences: list[str]  # [S]; joined they are txt
    matrix: list[list[Float32]]  # [Q][S], cosine of pair and sentence
    overall: float | None
    individual: float | None
    null: float | None
    lift: float | None
    sentence_std: list[float]  # [S]
    evidence: list[list[Evidence]]  # [Q][at most 10], the best first
    pair_tokens_lost: list[Int32]  # [Q], beyond the embedding model's limit
    sentence_tokens_lost: list[Int32]  # [S]
    reason: str | None  # a ScoreReason
    detail: str | None


class Questions(ScoreKey):
    """Row of questions.parquet, one a paper: the vectors of its questions."""

    pair_ids: list[str]  # [Q]
    questions: list[str]  # [Q]
    vectors: list[list[Float32]]  # [Q][dimensions], unit length


class QuestionPair(TypedDict):
    """Two questions of a paper, i < j."""

    i: Int32
    j: Int32
    cosine: Float32 | None
    judge: float | None  # in [0, 1]: question i first; null where it was not asked
    judge_swapped: float | None  # question j first


class ControlScore(TypedDict):
    """The judge's score of two questions whose relation is known."""

    kind: str  # duplicate, paraphrase or unrelated
    score: float


class Similarity(ScoreKey):
    """Row of similarity.parquet, one a paper."""

    pair_ids: list[str]  # [Q]
    pairs: list[QuestionPair]
    control: list[ControlScore]
    reason: str | None  # a ScoreReason
    detail: str | None


class Grades(TypedDict):
    """A judge's grades of one pair: expected value, 1…5."""

    relevance: float | None
    agnosticism: float | None
    completeness: float | None
    accuracy: float | None
    reasonableness: float | None


DIMENSIONS = columns(Grades)


class PairKey(ScoreKey):
    """The pair that scores belong to."""

    qa: Int32  # its index in the paper
    pair_id: str


class Racar(PairKey, Grades):
    """Row of racar.parquet, one a pair."""

    relevance_argmax: Int32 | None  # the likeliest level
    agnosticism_argmax: Int32 | None
    completeness_argmax: Int32 | None
    accuracy_argmax: Int32 | None
    reasonableness_argmax: Int32 | None
    passes: bool | None  # the rule of SciQAG's test set
    paper_tokens_lost: int  # of the paper's end, which the judge's context did not hold
    swapped: Grades | None  # control: with another paper's answer
    reason: str | None  # a ScoreReason
    detail: str | None


class Grounding(PairKey):
    """Row of grounding.parquet, one a pair."""

    numbers: Int32  # in the answer
    numbers_found: Int32  # of them in the paper, with their unit
    missing: list[str]  # the others, as written
    self_contained: bool
    leans_on: str | None  # the words by which the question needs its paper
    answer_words: Int32
    overlap: float | None  # of the answer's content words, those in its evidence; null without coverage
    reason: str | None  # a ScoreReason
    detail: str | None


class Example(TypedDict):
    """A training example as tokens."""

    id: str  # file:position
    input_ids: list[Int32]  # [T], prompt + answer + EOS, cut to the model's length
    prompt_tokens: Int32  # the first so many carry no loss
    truncated_tokens: Int32  # that were cut


PAPER_SCHEMA = arrow_schema(Paper)
REJECTED_SCHEMA = arrow_schema(Rejected)
PROMPT_SCHEMA = arrow_schema(Prompt)
COMPLETION_SCHEMA = arrow_schema(Completion)
PARSED_SCHEMA = arrow_schema(Parsed)
PAIRED_SCHEMA = arrow_schema(IngestedPair)
EXAMPLE_SCHEMA = arrow_schema(Example)
COVERAGE_SCHEMA = arrow_schema(Coverage)
QUESTION_SCHEMA = arrow_schema(Questions)
SIMILARITY_SCHEMA = arrow_schema(Similarity)
RACAR_SCHEMA = arrow_schema(Racar)
GROUNDING_SCHEMA = arrow_schema(Grounding)

PROMPT_COLUMNS = tuple(name for name in columns(Prompt) if name not in ("prompt", "paper_start", "paper_end"))
REQUEST_COLUMNS = columns(ScoreRequest)


def complete(
    prompt: Mapping[str, Any],
    output: str = "",
    *,
    output_tokens: int = 0,
    finish_reason: FinishReason | None = None,
    seconds: float = 0.0,
    prefill_seconds: float = 0.0,
    began: float = 0.0,
    worker: str = "",
    failure: Failure | None = None,
) -> Completion:
    """The Completion row that answers ``prompt``."""
    answer = {
        **{name: prompt[name] for name in columns(PromptKey)},
        "output": output,
        "output_tokens": output_tokens,
        "finish_reason": None if finish_reason is None else str(finish_reason),
        "seconds": seconds,
        "prefill_seconds": prefill_seconds,
        "began": began,
        "worker": worker,
        **failed(failure),
    }
    return typing.cast(Completion, answer)


def scored(
    requests: pa.Table, logprobs: Sequence[list[list[float]] | None], failures: Sequence[Failure | None]
) -> pa.Table:
    """The ScoreResult rows of ScoreRequest rows: their further columns, and the answers."""
    return with_scores(requests.drop_columns(list(REQUEST_COLUMNS)), logprobs, failures)


def with_scores(
    rows: pa.Table, logprobs: Sequence[list[list[float]] | None], failures: Sequence[Failure | None]
) -> pa.Table:
    """Rows and the ScoreResult of each."""
    results = [{"logprobs": own, **failed(failure)} for own, failure in zip(logprobs, failures, strict=True)]
    answers = table(results, arrow_schema(ScoreResult))
    for name in answers.column_names:
        rows = rows.append_column(name, answers[name])
    return rows
