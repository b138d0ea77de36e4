"""What the report reads of a run's JSON files, checked: they may be damaged, or those of another program."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from qaray.run.errors import Damaged
from qaray.run.storage import Location, NotJson

MEASURE_AGAIN = "rerun `qaray evaluate`"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Counts(_Part):
    papers: int
    pairs: int


class _GeneratedCounts(_Counts):
    papers_with_pairs: int
    records: int
    rejected: int
    prompts: int
    truncated_papers: int
    by_status: dict[str, int]
    by_reject_reason: dict[str, int]
    by_finish_reason: dict[str, int]
    answers_without_pairs: dict[str, int]


class _Settings(_Part):
    base_model: str | None
    template: str
    template_sha256: str
    num_qas: int
    context_size: int
    seq_len: int
    max_gen_len: int
    overlength: str
    rope_factor: float
    temperature: float
    top_p: float
    seed: int


class _Tokens(_Part):
    prompts: int
    outputs: int
    papers: int
    truncated: int


class _GenerationStart(_Part):
    seconds: float
    generate_seconds: float
    prompts: int
    prompt_tokens_per_second: float | None
    output_tokens_per_second: float | None


class _Engine(_Part):
    name: str
    why: str
    actors: Any


class GenerationManifest(_Part):
    """manifest.json of a generate run."""

    counts: _GeneratedCounts
    run: _Settings
    tokens: _Tokens
    last_start: _GenerationStart
    engine: _Engine
    versions: dict[str, Any]
    git_commit: str | None
    ledger: dict[str, Any] | None


class _EvaluationStart(_Part):
    seconds: float
    stages: dict[str, float]


class EvaluationManifest(_Part):
    """evaluation/manifest.json."""

    counts: _Counts
    run: dict[str, Any]
    pairs_of: str
    last_start: _EvaluationStart


class _Histogram(_Part):
    edges: list[float]
    counts: list[int]


class _Metric(_Part):
    mean: float | None
    low: float | None
    high: float | None
    papers: int
    missing: int
    histogram: _Histogram


class _Control(_Part):
    what: str
    auc: float | None
    near_chance: bool
    positives: int
    negatives: int


class _Similarity(_Part):
    judged: int
    flagged_share: float | None
    judge_cosine_spearman: float | None
    mean_gap_of_orders: float | None
    control: _Control


class _Racar(_Part):
    passing: int
    passing_share: float | None
    control: _Control


class _Grounding(_Part):
    numbers: int
    numbers_found: int
    swapped: int
    swapped_found: int
    swap_rate: float | None


class _Duplicates(_Part):
    pairs: int


class Summary(_Part):
    """evaluation/summary.json."""

    metrics: dict[str, _Metric]
    problems: dict[str, int]
    similarity: _Similarity | None = None
    racar: _Racar | None = None
    grounding: _Grounding | None = None
    near_duplicates: _Duplicates | None = None


class _TrainingSettings(_Part):
    model_name_or_path: str


class _Examples(_Part):
    examples: int
    tokens: int
    answer_tokens: int
    truncated: int
    truncated_tokens: int
    rejected: int


class TrainingManifest(_Part):
    """manifest.json of a fine-tuning."""

    run: _TrainingSettings
    model: str
    steps: int
    workers: int
    loss_first: float | None
    loss_last: float | None
    evaluation: dict[str, float] | None
    examples: dict[str, _Examples | None]


class TrainingLog(_Part):
    """training.json."""

    log: list[dict[str, Any]]


def checked(file: Location, value: Any, shape: type[BaseModel], cure: str) -> Any:
    """The value of a JSON file, if it has what ``shape`` names. Raises Damaged with the key that it lacks."""
    if value is None:
        raise Damaged(file, "is missing", cure)
    try:
        shape.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, problem["loc"])) or "it"
        raise Damaged(file, f"is damaged, or not of qaray ({key}: {problem['msg']})", cure) from None
    return value


def read_checked(file: Location, shape: type[BaseModel], cure: str) -> Any:
    """The content of a JSON file, like ``checked``."""
    try:
        return checked(file, file.read_json(), shape, cure)
    except NotJson as error:
        raise Damaged(file, f"is damaged ({error.why})", cure) from None
