"""One row type per stage: Paper → Prompt → Completion → Parsed → Paired → scores.

Each row type is defined once, as a ``TypedDict``; ``arrow_schema`` derives the schema of its shards and ``columns`` its
column names. Dimension letters in shape comments: P papers, Q pairs, S sentences, T tokens.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
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
    """The Arrow type of a field: a list for ``list[…]``, a struct for a TypedDict, the type of X for ``X | None``.

    Raises KeyError for an unsupported annotation.
    """
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
    """Rows (TypedDicts) as an Arrow table with this schema. A matrix is a list of lists or of arrays."""
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except pa.ArrowCapacityError:  # a chunk of lists holds fewer than 2³¹ values
        if len(rows) < 2:
            raise
        half = len(rows) // 2
        return pa.concat_tables([table(rows[:half], schema), table(rows[half:], schema)])


def rows_of(table: pa.Table) -> list[Any]:
    """The rows of a table, like ``to_pylist``, with each row of a matrix as an array: a view of the table's memory.

    A Python object for each of a matrix's values would take eight times its memory.
    """
    columns = [
        [row for chunk in column.chunks for row in _matrices(chunk)] if _is_matrix(column.type) else column.to_pylist()
        for column in table.columns
    ]
    names = table.column_names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _is_matrix(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        and pa.types.is_list(kind.value_type)
        and pa.types.is_floating(kind.value_type.value_type)
    )


def _matrices(rows: pa.ListArray) -> list[list[Any] | None]:
    """The matrices of a chunk, each a list of arrays; None for a null."""
    lines = rows.values
    ends, values = lines.offsets.to_numpy(), lines.values.to_numpy(zero_copy_only=False)
    return [
        None if missing else [values[ends[line] : ends[line + 1]] for line in range(first, last)]
        for missing, (first, last) in zip(
            rows.is_null().to_pylist(), itertools.pairwise(rows.offsets.to_pylist()), strict=True
        )
    ]


class Outcome(str, Enum):
    """A string enum whose ``str()`` is its value, so that rows, JSON and messages agree."""

    def __str__(self) -> str:
        return str(self.value)


class RejectReason(Outcome):
    """Why a record has no pairs in the output. Every rejected row has exactly one reason."""

    MISSING_KEY = "missing_key"  # a required field is absent or null, or doi is empty
    WRONG_TYPE = "wrong_type"  # a field's type does not match the schema
    EMPTY_TEXT = "empty_text"  # txt has no visible character
    DUPLICATE_DOI = "duplicate_doi"  # an earlier record (file, position) has the same doi
    UNDECODABLE = "undecodable"  # the bytes are not valid text or not a valid Parquet file
    NOT_JSON = "not_json"  # invalid JSON at this position
    OVER_LENGTH = "over_length"  # a prompt too long for its budget (--overlength skip), or a record beyond its limit
    ENGINE_ERROR = "engine_error"  # the engine failed on this prompt
    PROCESS_KILLED = "process_killed"  # every process that ran it was killed: see qaray.run.tries
    NO_PAIRS = "no_pairs"  # no attempt produced a question-answer pair
    NO_PAPER = "no_paper"  # an output whose doi matches no paper
    NO_OUTPUT = "no_output"  # a paper without an output


class FinishReason(Outcome):
    """Why an engine stopped generating."""

    STOP = "stop"  # end of text, or the answer is complete
    LENGTH = "length"  # the token limit was reached
    REPETITION = "repetition"  # the text repeated itself and was cut
    CONTENT_FILTER = "content_filter"  # the endpoint's filter ended the answer


# Reasons of an answer that does not end where the model wanted.
CUT_OFF = (FinishReason.LENGTH, FinishReason.REPETITION, FinishReason.CONTENT_FILTER)


class ParseStatus(Outcome):
    """Result of parsing a completion."""

    COMPLETE = "complete"  # at least as many pairs as requested
    SHORT = "short"  # fewer pairs, and the model ended the text
    TRUNCATED = "truncated"  # fewer pairs, and the text was cut off
    MALFORMED = "malformed"  # no pair; see NoPairs


class NoPairs(Outcome):
    """What an output without a pair is."""

    EMPTY = "empty"  # nothing, or blanks only
    REASONING_ONLY = "reasoning_only"  # nothing after the reasoning, which may be unfinished
    REFUSED = "refused"  # the model declines or asks for the paper
    BROKEN_JSON = "broken_json"  # JSON of which no pair can be read
    UNANSWERED = "unanswered"  # questions or empty markers, but no answer
    PROSE = "prose"  # any other text


class ScoreReason(Outcome):
    """Why a pair or a paper has no score."""

    NO_PAIRS = "no_pairs"  # the paper has no pairs
    EMPTY_PAPER = "empty_paper"  # the paper has no sentences
    FEWER_THAN_TWO_PAIRS = "fewer_than_two_pairs"  # no two questions to compare
    EMPTY_QUESTION = "empty_question"
    EMPTY_ANSWER = "empty_answer"
    OVER_LENGTH = "over_length"  # longer than the judge's context, or more cosines than are stored
    NOT_FINITE = "not_finite"  # the model returned NaN or infinite values
    ENGINE_ERROR = "engine_error"  # the engine failed
    PROCESS_KILLED = "process_killed"  # every process that ran it was killed: see qaray.run.tries


class Failure(NamedTuple):
    """Why a row has no result: the columns ``reason`` and ``detail``, both null if it has a result."""

    reason: str  # a RejectReason or a ScoreReason
    detail: str = ""  # one sentence for the user

    @classmethod
    def of(cls, reason: Outcome, error: BaseException | str = "") -> Failure:
        """A failure whose detail is the first line of the error's message, at most 500 characters."""
        detail = str(error).strip().split("\n")[0][:500]
        if not detail and isinstance(error, BaseException):
            detail = type(error).__name__
        return cls(str(reason), detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def failure_of(row: Mapping[str, Any]) -> Failure | None:
    """The failure recorded in a row, None if the row has a result."""
    return None if row["reason"] is None else Failure(row["reason"], row["detail"] or "")


def failed(failure: Failure | None) -> dict[str, str | None]:
    """The columns ``reason`` and ``detail`` of a failure, both None without one."""
    return {"reason": failure and failure.reason, "detail": failure and failure.detail}


# Keys under which a pair's question and answer are read, in the order of preference. Compared in lower case.
QUESTION_KEYS = ("q", "question", "query", "prompt", "instruction", "input", "problem", "human", "user")
ANSWER_KEYS = ("a", "answer", "response", "completion", "output", "solution", "reply", "gpt", "assistant")


class QA(TypedDict):
    """A question and its answer, as parsed from a text."""

    Q: str
    A: str


class Pair(QA):
    """A question and its answer, under the keys of the published data, and the pair's id."""

    pair_id: str


def pair_id(
    doi: str,
    ordinal: int,
    window: int | None = None,
    attempt: int | None = None,
    anchor: int | None = None,
    sample: int | None = None,
) -> str:
    """The id of a pair: the first 20 hexadecimal digits of the SHA-256 hash of its origin.

    Args:
        doi: The id of the paper.
        ordinal: Number of the pair in its answer, from 1; for imported pairs, its number in the paper's list.
        window, attempt, anchor, sample: The request that produced the answer; None where not applicable.
    """
    origin = json.dumps([doi, window, attempt, anchor, sample, ordinal])
    return hashlib.sha256(origin.encode()).hexdigest()[:20]


def identified(pairs: Sequence[QA], doi: str, window: int | None = None, attempt: int | None = None) -> list[Pair]:
    """The pairs of one answer, with their ids."""
    return [
        Pair(Q=pair["Q"], A=pair["A"], pair_id=pair_id(doi, ordinal, window, attempt))
        for ordinal, pair in enumerate(pairs, start=1)
    ]


class Paper(TypedDict):
    """One accepted paper."""

    row: int  # index among the accepted papers of the run, from 0
    doi: str  # opaque id as spelled in the input; unique in the run by corpus.doi.doi_key
    file: str  # input file of the paper
    position: int  # record number within that file, from 0
    tokens: int  # tokens of txt alone, counted with the run's tokenizer
    digest: str  # hash of txt, by which a changed paper is recognized; of an evaluation, of what its scores depend on
    source: str | None
    abstract: str | None
    keywords: list[str]
    txt: str
    title: str | None


class Rejected(TypedDict):
    """A record that yields no pairs, with the reason."""

    doi: str | None
    file: str | None
    position: int | None
    stage: str  # "ingest", "generate" or "parse"
    reason: str  # a RejectReason
    detail: str


class Flaw(TypedDict):
    """Why an optional field of an accepted paper is left out."""

    what: str  # without the record's value, to count: "title was not a string"
    detail: str


class LeftOut(Flaw):
    """An optional field that was left out, and its paper."""

    doi: str
    file: str
    position: int  # record number within the file, from 0


class PromptKey(TypedDict):
    """Identity and origin of a request to an engine. The key is (doi, window, attempt)."""

    doi: str
    shard: str  # name of the paper shard; generation shards are named after it
    row: int
    window: Int32  # 0 except with --overlength split
    windows: Int32  # number of windows of the paper
    attempt: Int32  # from 1
    num_qas: Int32  # pairs requested from this window
    start: int  # first character of txt in the prompt
    end: int  # one past the last character of txt in the prompt
    prompt_tokens: int  # tokens of the prompt, including BOS if it has one
    truncated_tokens: int  # tokens of the paper that are in none of its windows


class Prompt(PromptKey):
    """A request to an engine. A prompt with a failure is passed through without an answer."""

    paper_start: int  # first character of txt[start:end] in `prompt`
    paper_end: int  # one past the last character of txt[start:end] in `prompt`
    prompt: str  # the rendered text
    token_ids: list[Int32]  # tokens of the prompt, with its BOS; empty if the engine has no tokenizer
    opening: str  # start of the answer, with which the prompt ends
    max_tokens: Int32  # maximum length of the answer, in tokens
    reason: str | None
    detail: str | None


class Completion(PromptKey):
    """An engine's answer to a prompt."""

    output: str  # text of the answer, including `opening`
    output_tokens: int  # generated tokens, EOS not counted
    finish_reason: str | None  # a FinishReason; null with a failure
    seconds: float  # from admission into a batch to the last token
    prefill_seconds: float  # part of `seconds` up to the first token
    began: float  # time of admission into a batch, seconds since the epoch
    worker: str  # engine that answered: "host:process", or the address of an endpoint
    reason: str | None  # a RejectReason
    detail: str | None


class Parsed(Completion):
    """A completion with its parsed pairs: row of OUT/generations."""

    status: str  # a ParseStatus
    pairs: list[Pair]


class Paired(TypedDict):
    """A paper with its pairs, the input of an evaluation."""

    doi: str
    shard: str  # name of the input shard; score shards are named after it
    digest: str  # hash of what the scores depend on; a paper with a changed digest is scored again
    title: str | None
    txt: str
    pairs: list[Pair]


class IngestedPair(Paper):
    """A paper of a processed output, as stored in the evaluation's folder."""

    pairs: list[Pair]


class ScoreRequest(TypedDict):
    """A request to the scorer: the likelihood of each choice after prefix + suffix, for several suffixes.

    A dataset of requests may have further columns; they are returned with the results.
    """

    prefix: str  # processed once; a beginning shared with neighbouring rows is reused too
    suffixes: list[str]
    choices: list[str]


class ScoreResult(TypedDict):
    """Result of a ScoreRequest."""

    logprobs: list[list[float]] | None  # natural log of P(choice | prefix, suffix), [suffixes][choices]; not normalised
    reason: str | None  # if set, logprobs is null
    detail: str | None


class ScoreKey(TypedDict):
    """Identifies the paper of a score row."""

    doi: str
    digest: str


class Evidence(TypedDict):
    """A sentence of the paper that supports a pair."""

    sentence: Int32  # number of the sentence
    text: str  # of a long sentence, the beginning
    score: Float32  # cosine similarity


class Coverage(ScoreKey):
    """Row of coverage.parquet, one per paper."""

    pair_ids: list[str]  # [Q]
    sentences: list[str]  # [S]; their concatenation is txt
    matrix: list[list[Float32]]  # [Q][S], cosine similarity of pair and sentence
    overall: float | None
    individual: float | None
    null: float | None
    lift: float | None
    sentence_std: list[float]  # [S]
    evidence: list[list[Evidence]]  # [Q][at most 10], best first
    pair_tokens_lost: list[Int32]  # [Q], tokens beyond the embedding model's limit
    sentence_tokens_lost: list[Int32]  # [S], the same for sentences
    reason: str | None  # a ScoreReason
    detail: str | None


class Questions(ScoreKey):
    """Row of questions.parquet, one per paper: the embeddings of its questions."""

    pair_ids: list[str]  # [Q]
    questions: list[str]  # [Q]
    vectors: list[list[Float32]]  # [Q][dimensions], unit length


class QuestionPair(TypedDict):
    """Two questions of a paper, i < j."""

    i: Int32
    j: Int32
    cosine: Float32 | None
    judge: float | None  # in [0, 1], question i first; null if the judge was not asked
    judge_swapped: float | None  # the same with question j first


class ControlScore(TypedDict):
    """The judge's score of two questions with a known relation."""

    kind: str  # duplicate, paraphrase or unrelated
    score: float


class Similarity(ScoreKey):
    """Row of similarity.parquet, one per paper."""

    pair_ids: list[str]  # [Q]
    pairs: list[QuestionPair]  # all of them, or a sample: metrics.similarity.question_pairs
    control: list[ControlScore]
    reason: str | None  # a ScoreReason
    detail: str | None


class Grades(TypedDict):
    """A judge's grades of one pair: expected values in [1, 5]."""

    relevance: float | None
    agnosticism: float | None
    completeness: float | None
    accuracy: float | None
    reasonableness: float | None


DIMENSIONS = columns(Grades)


class PairKey(ScoreKey):
    """Identifies the pair of a score row."""

    qa: Int32  # index of the pair in the paper
    pair_id: str


class Racar(PairKey, Grades):
    """Row of racar.parquet, one per pair."""

    relevance_argmax: Int32 | None  # the most likely level
    agnosticism_argmax: Int32 | None
    completeness_argmax: Int32 | None
    accuracy_argmax: Int32 | None
    reasonableness_argmax: Int32 | None
    passes: bool | None  # whether the pair meets the rule of SciQAG's test set
    paper_tokens_lost: int  # tokens cut from the paper's end to fit the judge's context
    swapped: Grades | None  # control: grades with another paper's answer
    reason: str | None  # a ScoreReason
    detail: str | None


class Grounding(PairKey):
    """Row of grounding.parquet, one per pair."""

    numbers: Int32  # numbers in the answer
    numbers_found: Int32  # of these, found in the paper with their unit
    missing: list[str]  # numbers not found, as written
    swapped: Int32 | None  # numbers with a unit from other papers' answers, tested on this paper; null without any
    swapped_found: Int32 | None  # of these, found in the paper; both are the paper's, the same in each of its rows
    self_contained: bool | None  # null for an empty question
    paper_reference: str | None  # words that make the question depend on its paper
    answer_words: Int32 | None  # null for an empty answer
    overlap: float | None  # share of the answer's content words found in its evidence; null without coverage
    reason: str | None  # a ScoreReason
    detail: str | None


class Example(TypedDict):
    """A training example as tokens."""

    id: str  # file:position
    input_ids: list[Int32]  # [T], prompt + answer + EOS, truncated to the model's maximum length
    prompt_tokens: Int32  # leading tokens that are excluded from the loss
    truncated_tokens: Int32  # tokens cut off


PAPER_SCHEMA = arrow_schema(Paper)
REJECTED_SCHEMA = arrow_schema(Rejected)
LEFT_OUT_SCHEMA = arrow_schema(LeftOut)
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
    """The Completion row of ``prompt``, with an answer or a failure."""
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
    """ScoreResult rows for ScoreRequest rows. Further columns of the requests are kept."""
    return with_scores(requests.drop_columns(list(REQUEST_COLUMNS)), logprobs, failures)


def with_scores(
    rows: pa.Table, logprobs: Sequence[list[list[float]] | None], failures: Sequence[Failure | None]
) -> pa.Table:
    """The rows with the columns of their ScoreResult appended. Raises ValueError if the lengths differ."""
    results = [{"logprobs": own, **failed(failure)} for own, failure in zip(logprobs, failures, strict=True)]
    answers = table(results, arrow_schema(ScoreResult))
    for name in answers.column_names:
        rows = rows.append_column(name, answers[name])
    return rows
