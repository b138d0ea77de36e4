"""What a command was asked to do: small frozen models, validated when made, with a unit in every field's text.

A command's configuration is composed of groups: ``GenerateConfig.sampling`` is a ``Sampling``. On the command line and
in YAML files, the flags of all groups are flat: ``GenerateConfig(file_path=…, temperature=0.6)``. A command has a group
only if it reads all of its fields, so that ``--help`` shows nothing that has no effect.

The descriptions are the help texts of the flags. Nothing heavy is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

MOST_SHOWN = 160  # characters of a user's value in an error message
# Beyond these a number is a slip of the keyboard: Ray, torch and the clock fail on it in their own ways.
MOST_TOKENS = 1 << 30  # of a sequence
MOST_OF_A_NODE = 4096  # CPUs, GPUs or threads of one machine
MOST_PAPERS = 10**12
MOST_ACTORS = 10_000  # of a pool
NO_MODEL_ENGINES = frozenset({"echo"})
DEFAULT_JUDGE = "bundled:smollm2-135m"
DEFAULT_EMBEDDER = "bundled:minilm"


class ConfigError(ValueError):
    """A configuration that cannot be run: the message names the field, the value and the limit."""


class Settings(BaseModel):
    """Base of groups and commands: frozen, without unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
    heading: ClassVar[str] = "Options"  # of the fields in ``--help``


class Flag(NamedTuple):
    """A field of a command's configuration, as a user sees it."""

    field: FieldInfo
    heading: str


class Config(Settings):
    """Base of all commands' configurations, made from flat values. Raises ConfigError, one clause for each mistake."""

    positional: ClassVar[tuple[str, ...]] = ()  # flags whose values may be given without their names
    extra_flags: ClassVar[str] = ""  # the field that takes the flags that are not fields, '' for none
    extra_metavar: ClassVar[str] = ""  # how ``--help`` shows these

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, str) and not _is_text(value):
                raise ConfigError(f"--{name} must be valid Unicode text without NUL, got {shown(value)}")
            if value == "" and (flag := self.flags().get(name)) and flag.field.default != "":
                raise ConfigError(f"--{name} is empty: give it a value or leave it out")
        try:
            super().__init__(**_grouped(type(self), values))
        except ValidationError as error:
            raise ConfigError("; ".join(_one_line(type(self), each) for each in error.errors())) from None

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """Flag → its field: the command's own, then those of its groups."""
        own, grouped = {}, {}
        for name, field in cls.model_fields.items():
            if group := _group(field):
                grouped.update({flag: Flag(each, group.heading) for flag, each in group.model_fields.items()})
            else:
                extra = field.json_schema_extra
                own[name] = Flag(field, str(extra["heading"]) if isinstance(extra, dict) else cls.heading)
        return {**own, **grouped}

    def values(self) -> dict[str, Any]:
        """Flag → value."""
        found = {}
        for name, value in self:
            found.update(dict(value) if isinstance(value, Settings) else {name: value})
        return found

    def replace(self, **changes: Any) -> Self:
        """The same with other values for some flags."""
        return type(self)(**{**self.values(), **changes})

    @property
    def shows_logs(self) -> bool:
        """Whether --debug asks for the logs of Ray and the workers."""
        return False


def option(heading: str, default: Any, description: str, metavar: str = "", **limits: Any) -> Any:
    """A field of a command's own, outside of a group. ``...`` as its default: required."""
    return Field(default, description=description, json_schema_extra={"heading": heading, "metavar": metavar}, **limits)


# Groups


class Papers(Settings):
    """Papers to read."""

    heading: ClassVar[str] = "Input"

    file_path: str = Field(description="papers: a JSON list, JSONL or Parquet file, a folder, a glob or a URI")
    limit: int | None = Field(None, ge=1, le=MOST_PAPERS, description="read only the first N records")
    papers_per_shard: int = Field(500, ge=1, le=100_000, description="papers per Parquet shard")
    changed: Literal["report", "keep", "redo"] = Field(
        "report",
        description="papers whose text has changed since they were asked: name them and keep their pairs, only keep "
        "these, or ask again",
    )


class Pairs(Settings):
    """Pairs to evaluate."""

    heading: ClassVar[str] = "Input"

    processed_output: str | None = Field(
        None,
        description="file of papers with pairs, in the format of processed_output.json: {doi, txt, Q&A: [{Q, A}]} "
        "(default: the run's own pairs)",
    )
    papers_per_shard: int = Field(500, ge=1, le=100_000, description="papers per Parquet shard of --processed_output")


class Asking(Settings):
    """What is asked about each paper."""

    heading: ClassVar[str] = "Prompts"

    num_qas: int = Field(10, ge=1, le=100, description="pairs to generate per paper")
    request: str | None = Field(
        None,
        description="file with your own task prompt; must contain {paper} and {format} (of the output) exactly once; "
        "all slots: docs/design.md",
    )
    language: str | None = Field(None, description="language of the pairs, such as German (default: the paper's)")
    overlength: Literal["truncate", "skip", "split"] = Field(
        "truncate",
        description="papers that do not fit into --seq_len together with the output: truncate the end, skip the "
        "paper, or split it into windows",
    )
    max_attempts: int = Field(
        2, ge=1, le=20, description="maximum number of outputs per prompt to reach --num_qas pairs"
    )
    structured: bool = Field(False, description="vllm, http: constrain the output to a JSON list of pairs")


class LanguageModel(Settings):
    """How a causal language model is loaded."""

    heading: ClassVar[str] = "Model"

    cache_dir: str = Field("./cache", description="folder for downloaded and converted models")
    context_size: int | None = Field(
        None,
        ge=16,
        le=MOST_TOKENS,
        description="context length to load the model with, in tokens; beyond the model's own, RoPE is scaled linearly "
        "(default: the model's)",
    )
    seq_len: int | None = Field(
        None,
        ge=16,
        le=MOST_TOKENS,
        description="maximum length of prompt + output, in tokens (default: --context_size)",
    )
    prompt_template: str | None = Field(
        None,
        description="chat format around the task prompt: llama2, chat (the tokenizer's), or a file with {instruction} "
        "and {input}, the parts of the task prompt (default: the template of a model that qaray fine-tuned, else chat "
        "if the tokenizer has one, else llama2)",
    )
    flash_attn: bool = Field(True, description="use flash-attn if a GPU and the package are available")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="data type of weights and activations; auto: bfloat16 where the hardware supports it"
    )
    trust_remote_code: bool = Field(False, description="run the code that a model folder contains")

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.seq_len and self.context_size and self.seq_len > self.context_size:
            raise ValueError(seq_len_message(self.seq_len, self.context_size))
        return self


class Sampling(Settings):
    """How answers are sampled."""

    heading: ClassVar[str] = "Sampling"

    temperature: float = Field(0.6, ge=0, le=10, description="sampling temperature; 0 = greedy")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus sampling probability mass")
    max_gen_len: int = Field(2048, ge=1, le=MOST_TOKENS, description="maximum number of generated tokens")
    min_gen_len: int = Field(0, ge=0, le=MOST_TOKENS, description="minimum number of generated tokens (for benchmarks)")
    seed: int = Field(0, ge=0, lt=2**63, description="random seed; each (doi, window, attempt) derives its own")

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.min_gen_len > self.max_gen_len:
            raise ValueError(f"min_gen_len {self.min_gen_len} exceeds max_gen_len {self.max_gen_len}")
        return self


class Resources(Settings):
    """What an actor with a model takes of its node."""

    heading: ClassVar[str] = "Engine"

    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        le=MOST_OF_A_NODE,
        description="GPUs per actor; with vllm, per tensor- or pipeline-parallel worker (default: 1 if the cluster "
        "has GPUs, else 0)",
    )
    cpus_per_actor: float = Field(1, ge=0, le=MOST_OF_A_NODE, description="logical CPUs per actor")
    threads_per_actor: int | None = Field(
        None, ge=1, le=MOST_OF_A_NODE, description="CPU threads per actor (default: cores / maximum number of actors)"
    )
    batch_tokens: int | None = Field(
        None,
        ge=16,
        le=10**10,
        description="size of an actor's key-value cache, in tokens (default: from its free memory)",
    )


class VLLM(Settings):
    """vLLM's own settings."""

    heading: ClassVar[str] = "vLLM"

    tensor_parallel_size: int = Field(1, ge=1, le=MOST_OF_A_NODE, description="number of tensor-parallel GPUs")
    pipeline_parallel_size: int = Field(
        1,
        ge=1,
        le=MOST_OF_A_NODE,
        description="number of pipeline stages; an actor uses the product of both sizes in GPUs",
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="fraction of each GPU's memory to use")
    vllm_args: str | None = Field(
        None, description='further engine arguments, as JSON: {"max_num_batched_tokens": 8192}'
    )

    @field_validator("vllm_args")
    @classmethod
    def _vllm_args(cls, value: str | None) -> str | None:
        if value is not None and not isinstance(_json(value), dict):
            raise ValueError(f"must be a JSON object, got {shown(value)}")
        return value

    @property
    def gpus_per_engine(self) -> int:
        """GPUs that one model is spread over."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Endpoint(Settings):
    """A served model."""

    heading: ClassVar[str] = "Endpoint"

    base_url: str | None = Field(
        None,
        description="URL of an OpenAI-compatible endpoint: http://host:8000/v1; its key is read from QARAY_API_KEY or "
        "OPENAI_API_KEY",
    )
    api_key_file: str | None = Field(
        None, description="file with the endpoint's key, instead of an environment variable"
    )
    api: Literal["auto", "chat", "completions"] = Field(
        "auto",
        description="chat: /chat/completions, with the model's own template; completions: /completions, with "
        "--prompt_template, as token ids if --base_model is given; auto: chat if the endpoint has it, except for a "
        "model that qaray fine-tuned",
    )
    served_model: str | None = Field(
        None, description="name of the model at the endpoint (default: the first that it lists)"
    )
    requests_at_once: int = Field(64, ge=1, le=10_000, description="maximum number of concurrent requests")
    requests_per_second: float | None = Field(
        None, gt=0, le=1e6, description="maximum request rate (default: no limit)"
    )
    http_retries: int = Field(5, ge=0, le=1000, description="retries of a request after 5xx or no response")
    request_timeout: float = Field(1800, gt=0, le=86_400, description="timeout of a request, in seconds")
    input_price: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="price of a million prompt tokens, in any currency; adds the cost to the manifest",
    )
    output_price: float | None = Field(None, ge=0, le=1e6, description="price of a million output tokens")
    max_cost: float | None = Field(
        None, gt=0, le=1e9, description="stop before the run has cost more, all starts together; needs both prices"
    )

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value and not re.match(r"https?://[^/]", value):
            raise ValueError(f"must be http://… or https://…, got {shown(value)}")
        return value

    @model_validator(mode="after")
    def _prices(self) -> Self:
        if (self.input_price is None) != (self.output_price is None):
            given, other = ("input", "output") if self.output_price is None else ("output", "input")
            raise ValueError(f"--{given}_price requires --{other}_price")
        if self.max_cost is not None and self.input_price is None:
            raise ValueError("--max_cost requires --input_price and --output_price")
        return self

    def cost(self, prompt_tokens: float, output_tokens: float) -> float | None:
        """The price of so many tokens, None without prices."""
        per_input, per_output = self.input_price, self.output_price
        if per_input is None or per_output is None:
            return None
        return (prompt_tokens * per_input + output_tokens * per_output) / 1e6


METRICS = ("coverage", "similarity", "racar", "grounding")


class Metrics(Settings):
    """What is measured."""

    heading: ClassVar[str] = "Metrics"

    metrics: str = Field(
        ",".join(METRICS), description="comma-separated list of coverage, similarity, racar and grounding"
    )
    query_instruction: str = Field(
        "", description="prefix of each pair when it is embedded, for models such as e5-mistral (default: none)"
    )
    judge_above: float = Field(
        -1.0,
        ge=-1,
        le=1,
        description="similarity: minimum cosine of two questions for the judge to compare them; -1 = compare all",
    )
    control_papers: int = Field(
        100, ge=0, le=MOST_PAPERS, description="approximate number of papers used to check the judge"
    )
    duplicate_cosine: float = Field(0.9, gt=0, le=1, description="minimum cosine for near-duplicates across papers")

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, value: str) -> str:
        names = {name.strip() for name in value.split(",") if name.strip()}
        return ",".join([*(name for name in METRICS if name in names), *sorted(names - {*METRICS})])

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := [name for name in self.names if name not in METRICS]:
            raise ValueError(f"unknown metric {shown(unknown[0])}: choose from {', '.join(METRICS)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.metrics.split(","))


class Embedding(Settings):
    """The model that embeds texts, and its actors."""

    heading: ClassVar[str] = "Metrics"

    embedding_model: str | None = Field(
        None,
        description=f"sentence-transformers folder, hub id, bundled:NAME, or echo (default: {DEFAULT_EMBEDDER}; "
        "echo if the judge is echo)",
    )
    embed_actors: str = Field("1:1", description="number of embedding actors: N, or MIN:MAX to autoscale")
    embed_block: int | None = Field(
        None, ge=1, le=100_000, description="papers per batch of an embedding actor (default: 64 on GPUs, 4 on CPUs)"
    )

    @field_validator("embed_actors")
    @classmethod
    def _pool(cls, value: str) -> str:
        parse_pool(value)
        return value


class Output(Settings):
    """What is written besides the results."""

    heading: ClassVar[str] = "Output"

    report_papers: int = Field(1000, ge=0, le=MOST_PAPERS, description="write report pages for the first N papers")
    no_progress: bool = Field(False, description="hide progress")
    debug: bool = Field(False, description="show the logs of Ray, vLLM and the workers, and full tracebacks")


class Cluster(Settings):
    """The Ray cluster that a command runs on."""

    heading: ClassVar[str] = "Cluster"

    address: str | None = Field(
        None, description="Ray cluster to connect to (default: RAY_ADDRESS, else a local cluster is started)"
    )
    local_cpus: int | None = Field(
        None,
        ge=1,
        le=MOST_OF_A_NODE,
        description="logical CPUs of the local cluster (default: number of cores, at least 4)",
    )
    node_labels: str | None = Field(
        None, description="run models only on nodes that match all of these labels: ray.io/market-type=spot,…"
    )
    wait_hours: float = Field(
        12.0, gt=0, le=100_000, description="hours to wait for the first node that can hold a model"
    )

    @field_validator("node_labels")
    @classmethod
    def _labels(cls, value: str | None) -> str | None:
        parse_labels(value)
        return value

    @property
    def labels(self) -> dict[str, str]:
        """Label → value that a node must have, empty for any."""
        return parse_labels(self.node_labels)


OUTPUT_DIR: Any = option("Output", ..., "run directory: a path that all nodes share, or a URI (s3://, gs://)")


# Commands


class EngineConfig(Config):
    """What an engine is built from, whether it generates answers or scores them."""

    output_dir: str
    engine: str
    model: LanguageModel
    resources: Resources
    vllm: VLLM
    output: Output
    cluster: Cluster

    @property
    def model_name(self) -> str | None:
        """The causal language model: a path, a hub id or bundled:NAME; None if the engine needs none."""
        raise NotImplementedError

    @property
    def pool(self) -> tuple[int, int]:
        """Minimum and maximum number of engine actors."""
        raise NotImplementedError

    @property
    def shows_logs(self) -> bool:
        return self.output.debug


class GenerateConfig(EngineConfig):
    """Generate question-answer pairs from papers."""

    papers: Papers
    asking: Asking
    base_model: str | None = option(
        "Model",
        None,
        "local path, hub id or bundled:NAME; with --engine http, the served model's tokenizer (default: lengths are "
        "estimated)",
    )
    engine: Literal["auto", "echo", "http", "transformers", "vllm"] = option(
        "Engine",
        "auto",
        "what runs the model: vllm, transformers, http (an endpoint at --base_url), echo (no model); "
        "auto: vllm if a worker can import it, else transformers",
    )
    sampling: Sampling
    actors: str = option("Engine", "1:1", "number of engine actors: N, or MIN:MAX to autoscale")
    max_batch: int | None = option(
        "Engine",
        None,
        "maximum number of papers decoded together (default: 16 on CPUs, 64 on GPUs, 256 with vllm)",
        ge=1,
        le=4096,
    )
    echo_seconds: float = option("Engine", 0.0, "echo: seconds per output, to simulate a model's pace", ge=0, le=3600)
    endpoint: Endpoint
    output_dir: str = OUTPUT_DIR
    export_json: Literal["auto", "always", "never"] = option(
        "Output", "auto", "write the JSON exports; auto: up to 50,000 papers"
    )
    gpu_hour_price: float | None = option(
        "Output", None, "price of a GPU hour, in any currency; adds the cost to the manifest", gt=0, le=1e6
    )

    @field_validator("actors")
    @classmethod
    def _actors(cls, value: str) -> str:
        parse_pool(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.engine not in (*NO_MODEL_ENGINES, "http") and not self.base_model:
            raise ValueError(
                f"--base_model is required with --engine {self.engine}, such as Qwen/Qwen2.5-7B-Instruct; "
                "only --engine echo and http work without a model"
            )
        if self.engine == "http" and not self.endpoint.base_url:
            raise ValueError("--engine http requires --base_url, such as http://host:8000/v1")
        if self.endpoint.base_url and self.engine != "http":
            raise ValueError("--base_url requires --engine http")
        if self.asking.structured and self.engine in ("transformers", "echo"):
            raise ValueError(f"--structured is not supported by --engine {self.engine}: use vllm or http")
        return self

    @property
    def model_name(self) -> str | None:
        return self.base_model

    @property
    def pool(self) -> tuple[int, int]:
        return parse_pool(self.actors)


class EvaluateConfig(EngineConfig):
    """Score question-answer pairs.

    The flags under Model, Engine and vLLM configure the judge. --cache_dir, --dtype, --trust_remote_code,
    --gpus_per_actor, --cpus_per_actor and --threads_per_actor also apply to the embedding model.
    """

    pairs: Pairs
    compare: tuple[str, str] | None = option(
        "Input", None, "compare two evaluated runs: paired differences with confidence intervals", metavar="RUN_A RUN_B"
    )
    metrics: Metrics
    embedding: Embedding
    judge_model: str | None = option(
        "Model",
        None,
        f"causal LM that judges the pairs: local path, hub id or bundled:NAME (default: {DEFAULT_JUDGE}; "
        "none if the judge is echo)",
    )
    engine: Literal["auto", "echo", "transformers", "vllm"] = option(
        "Engine",
        "auto",
        "what runs the judge: vllm, transformers, echo (no model); auto: vllm if a worker can import it, else "
        "transformers",
    )
    judge_actors: str = option("Engine", "1:1", "number of judge actors: N, or MIN:MAX to autoscale")
    output_dir: str = option(
        "Output",
        "",
        "run directory to evaluate; with --processed_output, the folder to write (required, except with --compare)",
    )

    @field_validator("judge_actors")
    @classmethod
    def _actors(cls, value: str) -> str:
        parse_pool(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.compare and not self.output_dir:
            raise ValueError("--output_dir is required")
        return self

    @property
    def judges(self) -> bool:
        """Whether a judge is needed."""
        return "similarity" in self.metrics.names or "racar" in self.metrics.names

    @property
    def embeds(self) -> bool:
        """Whether an embedding model is needed."""
        return "similarity" in self.metrics.names or "coverage" in self.metrics.names

    @property
    def model_name(self) -> str | None:
        return self.judge_model or (None if self.engine in NO_MODEL_ENGINES else DEFAULT_JUDGE)

    @property
    def embedder(self) -> str:
        """Name of the embedding model. With --engine echo it is echo, too, unless it is named."""
        return self.embedding.embedding_model or ("echo" if self.engine == "echo" else DEFAULT_EMBEDDER)

    @property
    def pool(self) -> tuple[int, int]:
        return parse_pool(self.judge_actors)

    @property
    def embed_pool(self) -> tuple[int, int]:
        return parse_pool(self.embedding.embed_actors)


# Flags of the judge that `qaray run` has a second time, as --judge_…: what holds for one model need not for another.
JUDGE_FLAGS = ("engine", "context_size", "seq_len", "prompt_template", "batch_tokens", "vllm_args")
RUN_WITHOUT = ("processed_output", "compare")  # `qaray run` evaluates its own pairs


class PipelineConfig(Config):
    """Generate pairs from papers, evaluate them and write the report.

    Flags named --judge_… configure the judge only. Their counterparts without judge_, and --base_model, --max_batch and
    --echo_seconds, apply to generation only, except that --engine echo also makes echo the default judge. The other
    flags under Model, Engine and vLLM apply to both.
    """

    generation: GenerateConfig
    evaluation: EvaluateConfig

    def __init__(self, **values: Any) -> None:
        generate = {name: value for name, value in values.items() if name in GenerateConfig.flags()}
        judge = {f"judge_{name}": name for name in JUDGE_FLAGS}
        own = EvaluateConfig.flags().keys() - set(JUDGE_FLAGS) - set(RUN_WITHOUT)
        if unknown := values.keys() - generate.keys() - judge.keys() - own:
            raise ConfigError(f"unknown setting {', '.join(sorted(unknown))[:MOST_SHOWN]}")
        evaluate = {judge.get(name, name): value for name, value in values.items() if name in judge or name in own}
        if evaluate.get("engine") is None:
            evaluate["engine"] = "echo" if generate.get("engine") == "echo" else "auto"
        generation = GenerateConfig(**generate)
        try:
            evaluation = EvaluateConfig(**evaluate)
        except ConfigError as error:
            renamed = re.sub(rf"--(?={'|'.join(JUDGE_FLAGS)}\b)", "--judge_", str(error))
            raise ConfigError(f"judge: {renamed}") from None
        super().__init__(generation=generation, evaluation=evaluation)

    @property
    def shows_logs(self) -> bool:
        return self.generation.shows_logs

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        generate, judge = GenerateConfig.flags(), EvaluateConfig.flags()
        scores = {name: flag for name, flag in judge.items() if name not in {*JUDGE_FLAGS, *RUN_WITHOUT, *generate}}
        twice = {f"judge_{name}": _of_the_judge(name, judge[name]) for name in JUDGE_FLAGS}
        return {**generate, **scores, **twice}


def _of_the_judge(name: str, flag: Flag) -> Flag:
    """The flag as `qaray run` shows it: --judge_NAME."""
    field = copy(flag.field)
    field.description = (field.description or "").replace("--context_size", "--judge_context_size")
    if name == "engine":
        field.default = None
        field.description += " (default: echo with --engine echo, else auto)"
    return Flag(field, "Judge")


class FineTuneConfig(Config):
    """Fine-tune a model on examples {instruction, input, output}.

    All flags of transformers' TrainingArguments are accepted: --num_train_epochs, --learning_rate, --bf16, …
    """

    heading: ClassVar[str] = "Training"
    extra_flags: ClassVar[str] = "training"
    extra_metavar: ClassVar[str] = "[--TRAINING_ARGUMENT VALUE]..."

    data_path: str = option("Input", ..., "examples: a JSON list, JSONL or Parquet file, a folder, a glob or a URI")
    eval_data_path: str | None = option("Input", None, "held-out examples; their loss is measured before and after")
    model_max_length: int = option(
        "Input",
        12288,
        "maximum length of prompt + output, in tokens; beyond the model's own context, RoPE is scaled linearly",
        ge=16,
        le=MOST_TOKENS,
    )
    overlength: Literal["truncate", "shorten", "reject"] = option(
        "Input",
        "truncate",
        "examples longer than --model_max_length: truncate the end of the output, shorten the paper and keep the whole "
        "output, or reject the example",
    )
    prompt_template: str = option(
        "Input",
        "llama2",
        "chat format of the prompt: llama2, chat (the tokenizer's), or a file with {instruction} and {input}",
    )
    request: str | None = option("Input", None, "task prompt that the examples were made with (--request of make-sft)")
    language: str | None = option("Input", None, "language that the examples were made with (--language of make-sft)")
    model_name_or_path: str = option("Model", ..., "model to fine-tune: local path, hub id or bundled:NAME")
    cache_dir: str = option("Model", "./cache", "folder for downloaded and converted models")
    trust_remote_code: bool = option("Model", False, "run the code that a model folder contains")
    use_flash_attn: bool = option("Model", True, "use flash-attn if a GPU and the package are available")
    use_full_attn: bool = Field(False, description="full attention in training instead of S²-Attn")
    s2_group_size: int | None = Field(
        None,
        ge=2,
        le=MOST_TOKENS,
        description="group size of S²-Attn, in tokens (default: a quarter of the sequence if its length is a multiple "
        "of 4096, else 8192)",
    )
    low_rank_training: bool = Field(False, description="LoRA on q, k, v and o; --trainable_params are trained in full")
    trainable_params: str = Field(
        "embed,norm", description="parts of parameter names to train in full with --low_rank_training"
    )
    lora_r: int = Field(8, ge=1, le=65_536, description="rank of LoRA")
    lora_alpha: int = Field(16, ge=1, le=65_536, description="alpha of LoRA")
    deepspeed: str | None = Field(None, description="DeepSpeed configuration, such as ds_configs/stage3.json")
    num_workers: int = Field(1, ge=1, le=MOST_ACTORS, description="number of training processes, one per GPU")
    use_gpu: bool | None = Field(None, description="train on GPUs (default: if the cluster has any)")
    cpus_per_worker: float = Field(1, gt=0, le=MOST_OF_A_NODE, description="logical CPUs per training process")
    max_failures: int = Field(
        3, ge=-1, le=10**6, description="maximum number of restarts after lost workers; -1 = no limit"
    )
    output_dir: str = option("Output", ..., "run directory: a path that all nodes share")
    storage_path: str | None = option(
        "Output", None, "where checkpoints are written: a folder that all nodes share, or a URI (default: --output_dir)"
    )
    run_name: str = option(
        "Output", "checkpoints", "name of the checkpoint folder; reuse the name to resume", pattern=r"^[\w.-]+$"
    )
    no_progress: bool = option("Output", False, "hide progress")
    cluster: Cluster
    training: dict[str, str] = Field({}, description="flags of transformers' TrainingArguments")

    @field_validator("output_dir")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                f"must be a path that all nodes share, not a URI, got {shown(value)}: "
                "only --storage_path, for checkpoints, may be a URI"
            )
        return value


class MakeSftConfig(Config):
    """Convert papers with pairs to training examples, using the prompts of generate."""

    processed_output: str = option(
        "Input", ..., "file of papers with pairs, in the format of processed_output.json: {doi, txt, Q&A: [{Q, A}]}"
    )
    min_pairs: int = option("Input", 1, "skip papers with fewer pairs", ge=1, le=10**6)
    request: str | None = option("Prompts", None, Asking.model_fields["request"].description or "")
    language: str | None = option("Prompts", None, Asking.model_fields["language"].description or "")
    output: str = option("Output", ..., "file to write: .json, .jsonl or .parquet")


class ExportConfig(Config):
    """Convert a checkpoint to a model folder."""

    positional: ClassVar[tuple[str, ...]] = ("checkpoint", "output_dir")

    checkpoint: str = option(
        "Input", ..., "a checkpoint, or a folder of checkpoints, of which the last complete one is used"
    )
    output_dir: str = option("Output", ..., "model folder to write")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "Output", "auto", "data type of the weights; auto: float16 if it was trained so, else bfloat16"
    )


class ParseConfig(Config):
    """Parse outputs that were generated elsewhere into question-answer pairs."""

    original_output: str = option("Input", ..., "model outputs: a JSON list or JSONL of records {doi, output}")
    file_path: str = option("Input", ..., "papers that the outputs belong to")
    num_qas: int | None = option(
        "Input", None, "pairs requested per paper: count the papers with fewer (default: not counted)", ge=1, le=10**6
    )
    output_dir: str = option("Output", ..., "folder for processed_output.json and rejected.jsonl")


class ReportConfig(Config):
    """Rewrite the report of a finished run."""

    output_dir: str = option("Input", ..., "run directory")
    report_papers: int = option(
        "Output", 1000, Output.model_fields["report_papers"].description or "", ge=0, le=MOST_PAPERS
    )


class PlanConfig(Config):
    """Extrapolate hours, cost and disk space from a finished run to a corpus."""

    output_dir: str = option("Input", ..., "run directory of a finished generate")
    papers: int = option("Input", ..., "number of papers of the corpus", ge=1, le=10**12)
    paper_tokens: int | None = option(
        "Input", None, "mean length of a paper, in tokens (default: the run's)", ge=1, le=MOST_TOKENS
    )
    gpus: int = option(
        "Cluster",
        1,
        "number of GPUs to plan for; if the run used none, number of actors with the resources of the run's",
        ge=1,
        le=10**6,
    )
    gpu_hour_price: float | None = option("Cluster", None, "price of a GPU hour (default: the run's)", gt=0, le=1e6)
    input_price: float | None = option(
        "Endpoint", None, "price of a million prompt tokens (default: the run's)", ge=0, le=1e6
    )
    output_price: float | None = option(
        "Endpoint", None, "price of a million output tokens (default: the run's)", ge=0, le=1e6
    )


class StatusConfig(Config):
    """Show the progress of a run, read from its files."""

    positional: ClassVar[tuple[str, ...]] = ("output_dir",)

    output_dir: str = option("Input", ..., "run directory")
    json_lines: bool = option("Output", False, "print JSON, one line")
    watch: float | None = option("Output", None, "refresh every N seconds until the run ends", gt=0, le=86_400)
    repair: bool = option("Output", False, "find damaged, missing and doubled files, and set aside what is made again")


class SubmitConfig(Config):
    """Submit a command to a Ray cluster as a job, follow its log, and resubmit it if it fails."""

    positional: ClassVar[tuple[str, ...]] = ("command",)
    extra_flags: ClassVar[str] = "command_flags"
    extra_metavar: ClassVar[str] = "[--FLAG_OF_THE_COMMAND VALUE]..."

    command: str = option("Input", ..., "generate, evaluate, fine-tune or run")
    working_dir: str = option(
        "Input", ".", "working directory of the job, a checkout of qaray: a folder, or the URI of a .zip archive"
    )
    pip: str | None = option("Input", None, "requirements file for the job's environment")
    env: str | None = option("Input", None, "comma-separated names of environment variables to forward")
    address: str | None = option(
        "Cluster", None, "URL of the job server, http://head:8265 (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS)"
    )
    token_file: str | None = option(
        "Cluster",
        None,
        "file with the cluster's token (default: the token in RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else "
        "~/.ray/auth_token)",
    )
    submission_id: str | None = option("Cluster", None, "name of the job (default: from the command and the time)")
    resubmit: int = option("Cluster", 2, "maximum number of resubmissions of a failed job", ge=0, le=100)
    wait: bool = option("Cluster", True, "follow the job until it ends; False: return once it is submitted")
    command_flags: dict[str, str] = Field({}, description="flags of the command")


class DemoConfig(Config):
    """Run everything on the sample papers with the bundled models."""

    num_qas: int = option("Prompts", 5, "pairs to generate per paper", ge=1, le=100)
    max_gen_len: int = option("Prompts", 200, "maximum number of generated tokens", ge=1, le=MOST_TOKENS)
    engine: Literal["auto", "echo", "transformers"] = option(
        "Model", "auto", "auto, transformers: the bundled models; echo: no model"
    )
    cache_dir: str = option("Model", "./cache", "folder for the converted model")
    output_dir: str = option("Output", "runs/demo", "run directory to write")
    no_progress: bool = option("Output", False, "hide progress")
    debug: bool = option("Output", False, "show the logs of Ray and the workers, and full tracebacks")

    @property
    def shows_logs(self) -> bool:
        return self.debug


# Values


def parse_pool(text: str) -> tuple[int, int]:
    """``MIN:MAX`` or ``N`` to (min, max). Raises ValueError on anything else."""
    match = re.fullmatch(r"0*(\d{1,9})(?::0*(\d{1,9}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= MOST_ACTORS:
        raise ValueError(f"must be MIN:MAX or N, with 1 ≤ MIN ≤ MAX ≤ {MOST_ACTORS:,}, got {shown(text)}")
    return low, high


def parse_labels(text: str | None) -> dict[str, str]:
    """``KEY=VALUE,…`` as a mapping. Raises ValueError on anything else."""
    labels = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"must be KEY=VALUE,…, such as ray.io/market-type=spot, got {shown(text)}")
        labels[key] = value
    return labels


_ABBREVIATED = reprlib.Repr()
_ABBREVIATED.maxstring = _ABBREVIATED.maxother = 120


def shown(value: Any) -> str:
    """A value as an error message quotes it: in at most MOST_SHOWN characters, however large it is."""
    if isinstance(value, float):
        return f"{value}"
    text = _ABBREVIATED.repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def seq_len_message(seq_len: int, context_size: int) -> str:
    return (
        f"seq_len {seq_len} exceeds context_size {context_size}: lower --seq_len, raise --context_size, or use a model "
        "fine-tuned for a longer context"
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


# Groups and flags, and what is wrong with their values


def _group(field: FieldInfo) -> type[Settings] | None:
    """The group that a field holds, None for a flag."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _is_group(value: Any) -> bool:
    return isinstance(value, Settings)


def _grouped(config: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values, those of groups under their group's name. A flag of two groups goes to both."""
    flat = dict(values)
    groups = {name: group for name, field in config.model_fields.items() if (group := _group(field))}
    owned = {own for group in groups.values() for own in group.model_fields}
    if unknown := [name for name in groups if name in flat and name not in owned and not _is_group(flat[name])]:
        raise ConfigError(f"unknown setting {unknown[0][:MOST_SHOWN]}")
    made = {name: flat.pop(name) for name in groups if _is_group(flat.get(name))}
    for name, group in groups.items():
        if name not in made:
            made[name] = {own: flat[own] for own in group.model_fields if own in flat}
    return {**made, **{name: value for name, value in flat.items() if name not in owned}}


def _one_line(config: type[Config], error: Any) -> str:
    """One mistake of pydantic's in our words: field, consequence, value."""
    groups = {name for name, field in config.model_fields.items() if _group(field)}
    name = ".".join(str(part) for part in error["loc"] if part not in {*groups, config.extra_flags})
    name = name if len(name) <= MOST_SHOWN else f"{name[: MOST_SHOWN - 1]}…"
    value = error.get("input")
    if error["type"] == "missing":
        return f"--{name} is required"
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"--{name} {message}" if name else message
    flag = config.flags().get(name)
    limits = _limits(flag.field) if flag else ""
    if limits and isinstance(value, int | float) and not isinstance(value, bool):
        return f"--{name} must be {limits}, got {shown(value)}"
    what = error["msg"].replace("Input should be ", "must be ").replace("Input ", "")
    return f"--{name} {what}, got {shown(value)}"


def _limits(field: FieldInfo) -> str:
    """The bounds of a field in words, '' where it has none."""
    bounds = {each: getattr(m, each) for m in field.metadata for each in ("ge", "gt", "le", "lt") if hasattr(m, each)}
    if "ge" in bounds and "le" in bounds:
        return f"between {bounds['ge']} and {bounds['le']}"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{words[key]} {bound}" for key, bound in bounds.items())
