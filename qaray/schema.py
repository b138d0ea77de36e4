"""One row type a stage: Paper → Prompt → Completion → Parsed → Paired → scores.

Each type is given twice: as a ``TypedDict`` for code that handles single rows, and as an Arrow schema for
the shards on disk. Letters in shape comments: P papers, Q pairs, S sentences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, TypedDict

import pyarrow as pa


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


class Pair(TypedDict):
    """A question and its answer, under the keys of the published data."""

    Q: str
    A: str


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


class Prompt(TypedDict):
    """One request to an engine, keyed (doi, window, attempt)."""

    doi: str
    shard: str  # name of the paper shard, which names the generation shards too
    row: int
    window: int  # 0 but for --overlength split
    windows: int  # of the paper, in all
    attempt: int  # from 1
    num_qas: int  # pairs asked of this window
    start: int  # first character of txt in the prompt
    end: int  # one past the last character of txt in the prompt
    paper_start: int  # where txt[start:end] lies in `prompt`: characters
    paper_end: int
    prompt: str  # the rendered text, as the model reads it
    token_ids: list[int]  # its tokens, BOS included once; empty where the engine has no tokenizer
    opening: str  # what the answer begins with: put into the model's mouth, part of `prompt`
    prompt_tokens: int  # tokens of the prompt, BOS included
    truncated_tokens: int  # tokens of the paper that no window of it holds
    max_tokens: int  # cap on the answer, in tokens
    error: str | None  # set: the engine passes the row through; "REASON: detail"


class Completion(TypedDict):
    """An engine's answer to a prompt: the prompt's key and these fields."""

    doi: str
    shard: str
    row: int
    window: int
    windows: int
    attempt: int
    num_qas: int
    start: int
    end: int
    prompt_tokens: int
    truncated_tokens: int
    output: str  # the answer's text, `opening` included
    output_tokens: int  # tokens written by the model, EOS not counted
    finish_reason: str | None  # a FinishReason; null with an error
    seconds: float  # from admission into a batch to the last token
    prefill_seconds: float  # of them, up to the first token: the prompt is read
    began: float  # admission into a batch, seconds since the epoch
    worker: str  # which engine answered: "host:process", or an endpoint's address
    error: str | None  # "REASON: detail" with a RejectReason


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


class ScoreRequest(TypedDict):
    """Questions to the scorer that share a prefix: how likely is each choice after prefix + suffix?

    A dataset of them may have further columns: they come back with the answer.
    """

    prefix: str  # read once; neighbouring rows that begin alike share that part too
    suffixes: list[str]
    choices: list[str]


class ScoreResult(TypedDict):
    logprobs: list[list[float]] | None  # natural log of P(choice | prefix, suffix), [suffixes][choices]; not normalised
    error: str | None  # set: no logprobs; "REASON: detail"


PAIRS = pa.list_(pa.struct([("Q", pa.string()), ("A", pa.string())]))

PAPER_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("doi", pa.string()),
        ("file", pa.string()),
        ("position", pa.int64()),
        ("tokens", pa.int64()),
        ("source", pa.string()),
        ("abstract", pa.string()),
        ("keywords", pa.list_(pa.string())),
        ("txt", pa.string()),
        ("title", pa.string()),
    ]
)

REJECTED_SCHEMA = pa.schema(
    [
        ("doi", pa.string()),
        ("file", pa.string()),
        ("position", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

_KEY = [
    ("doi", pa.string()),
    ("shard", pa.string()),
    ("row", pa.int64()),
    ("window", pa.int32()),
    ("windows", pa.int32()),
    ("attempt", pa.int32()),
    ("num_qas", pa.int32()),
    ("start", pa.int64()),
    ("end", pa.int64()),
    ("prompt_tokens", pa.int64()),
    ("truncated_tokens", pa.int64()),
]

PROMPT_SCHEMA = pa.schema(
    [
        *_KEY,
        ("paper_start", pa.int64()),
        ("paper_end", pa.int64()),
        ("prompt", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("opening", pa.string()),
        ("max_tokens", pa.int32()),
        ("error", pa.string()),
    ]
)

COMPLETION_SCHEMA = pa.schema(
    [
        *_KEY,
        ("output", pa.string()),
        ("output_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("seconds", pa.float64()),
        ("prefill_seconds", pa.float64()),
        ("began", pa.float64()),
        ("worker", pa.string()),
        ("error", pa.string()),
    ]
)

PARSED_SCHEMA = pa.schema([*COMPLETION_SCHEMA, ("status", pa.string()), ("pairs", PAIRS)])

REQUEST_COLUMNS = ["prefix", "suffixes", "choices"]
LOGPROBS = pa.list_(pa.list_(pa.float64()))


SCORE_KEY = [("doi", pa.string()), ("digest", pa.string())]
EVIDENCE = pa.list_(
    pa.list_(pa.struct([("sentence", pa.int32()), ("text", pa.string()), ("score", pa.float32())]))
)  # [Q][at most 10], the best first

# What the metrics give, in the run's evaluation folder. ``problem``: why a value is missing, null where none is.
COVERAGE_SCHEMA = pa.schema(
    [
        *SCORE_KEY,
        ("sentences", pa.list_(pa.string())),  # [S]; joined they are txt
        ("matrix", pa.list_(pa.list_(pa.float32()))),  # [Q][S], cosine of pair and sentence
        ("overall", pa.float64()),
        ("individual", pa.float64()),
        ("null", pa.float64()),
        ("lift", pa.float64()),
        ("sentence_std", pa.list_(pa.float64())),  # [S]
        ("evidence", EVIDENCE),
        ("pair_tokens_lost", pa.list_(pa.int32())),  # [Q], beyond the embedding model's limit
        ("sentence_tokens_lost", pa.list_(pa.int32())),  # [S]
        ("problem", pa.string()),
    ]
)
QUESTION_SCHEMA = pa.schema(
    [*SCORE_KEY, ("questions", pa.list_(pa.string())), ("vectors", pa.list_(pa.list_(pa.float32())))]
)
SIMILARITY_SCHEMA = pa.schema(
    [
        *SCORE_KEY,
        (
            "pairs",
            pa.list_(
                pa.struct(
                    [
                        ("i", pa.int32()),
                        ("j", pa.int32()),  # i < j
                        ("cosine", pa.float32()),
                        ("judge", pa.float64()),  # in [0, 1]: question i first; null where it was not asked
                        ("judge_swapped", pa.float64()),  # question j first
                    ]
                )
            ),
        ),
        ("control", pa.list_(pa.struct([("kind", pa.string()), ("score", pa.float64())]))),
        ("problem", pa.string()),
    ]
)
DIMENSIONS = ("relevance", "agnosticism", "completeness", "accuracy", "reasonableness")
RACAR_SCHEMA = pa.schema(
    [
        *SCORE_KEY,
        ("qa", pa.int32()),  # index of the pair
        *((name, pa.float64()) for name in DIMENSIONS),  # expected value, 1…5
        *((f"{name}_argmax", pa.int32()) for name in DIMENSIONS),  # the likeliest level
        ("passes", pa.bool_()),  # the rule of SciQAG's test set
        ("paper_tokens_lost", pa.int64()),  # of the paper's end, which the judge's context did not hold
        ("swapped", pa.struct([(name, pa.float64()) for name in DIMENSIONS])),  # control: with another paper's answer
        ("problem", pa.string()),
    ]
)
GROUNDING_SCHEMA = pa.schema(
    [
        *SCORE_KEY,
        ("qa", pa.int32()),
        ("numbers", pa.int32()),  # in the answer
        ("numbers_found", pa.int32()),  # of them in the paper, with their unit
        ("missing", pa.list_(pa.string())),  # the others, as written
        ("self_contained", pa.bool_()),
        ("leans_on", pa.string()),  # the words by which the question needs its paper
        ("answer_words", pa.int32()),
        ("overlap", pa.float64()),  # of the answer's content words, those in its evidence; null without coverage
        ("problem", pa.string()),
    ]
)


def complete(
    prompt: Prompt,
    output: str = "",
    *,
    output_tokens: int = 0,
    finish_reason: FinishReason | None = None,
    seconds: float = 0.0,
    prefill_seconds: float = 0.0,
    began: float = 0.0,
    worker: str = "",
    error: str | None = None,
) -> Completion:
    """The Completion row that answers ``prompt``."""
    return Completion(
        doi=prompt["doi"],
        shard=prompt["shard"],
        row=prompt["row"],
        window=prompt["window"],
        windows=prompt["windows"],
        attempt=prompt["attempt"],
        num_qas=prompt["num_qas"],
        start=prompt["start"],
        end=prompt["end"],
        prompt_tokens=prompt["prompt_tokens"],
        truncated_tokens=prompt["truncated_tokens"],
        output=output,
        output_tokens=output_tokens,
        finish_reason=None if finish_reason is None else str(finish_reason),
        seconds=seconds,
        prefill_seconds=prefill_seconds,
        began=began,
        worker=worker,
        error=error,
    )


def scored(requests: pa.Table, logprobs: Sequence[list[list[float]] | None], errors: Sequence[str | None]) -> pa.Table:
    """The ScoreResult rows of ScoreRequest rows: their further columns, and the answers."""
    return with_scores(requests.drop_columns(REQUEST_COLUMNS), logprobs, errors)


def with_scores(rows: pa.Table, logprobs: Sequence[list[list[float]] | None], errors: Sequence[str | None]) -> pa.Table:
    """Rows and the ScoreResult of each."""
    rows = rows.append_column("logprobs", pa.array(logprobs, LOGPROBS))
    return rows.append_column("error", pa.array(errors, pa.string()))


class Example(TypedDict):
    """A training example as tokens."""

    id: str  # file:position
    input_ids: list[int]  # [T], prompt + answer + EOS, cut to the model's length
    prompt_tokens: int  # the first so many carry no loss
    truncated_tokens: int  # that were cut


EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt_tokens", pa.int32()),
        ("truncated_tokens", pa.int32()),
    ]
)
REJECTED_EXAMPLE_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    """Rows (TypedDicts) as an Arrow table of exactly that schema."""
    return pa.Table.from_pylist(rows, schema=schema)
