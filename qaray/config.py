"""What a command was asked to do: frozen, validated at construction, a unit in every field's text.

The descriptions are the help texts of the flags. Nothing heavy is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

NO_MODEL_ENGINES = frozenset({"echo"})


class Config(BaseModel):
    """Base of all configurations. Raises ConfigError, one line a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
    positional: ClassVar[tuple[str, ...]] = ()  # fields that may be given without their flags
    more_flags: ClassVar[str] = ""  # the field that takes the flags that are no field, '' for none

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_one_line(type(self), e) for e in error.errors())) from None


class ConfigError(ValueError):
    """A configuration that cannot be run: the message names the field, the value and the limit."""


class DriverConfig(Config):
    """What every command takes that works on a cluster."""

    output_dir: str = Field(description="run directory to write: a path or URI (s3://, gs://)")
    no_progress: bool = Field(False, description="True: no progress lines")
    address: str | None = Field(None, description="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    local_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of the local cluster (default: cores, at least 4)"
    )
    node_labels: str | None = Field(
        None, description="labels of the nodes that models may run on: ray.io/market-type=spot, …; all of them must fit"
    )
    wait_hours: float = Field(12.0, gt=0, description="hours to wait for the first node that can hold a model")

    @field_validator("node_labels")
    @classmethod
    def _labels(cls, value: str | None) -> str | None:
        parse_labels(value)
        return value

    @property
    def labels(self) -> dict[str, str]:
        """Label → value that a node must have, empty for any."""
        return parse_labels(self.node_labels)


class RunConfig(DriverConfig):
    """What every command that works on a run directory takes."""

    debug: bool = Field(False, description="True: show the logs of Ray, vLLM and the workers, and full tracebacks")
    report_papers: int = Field(1000, ge=0, description="papers that get a page of the report, the first ones")
    export_json: Literal["auto", "always", "never"] = Field(
        "auto", description="write the JSON exports: auto = up to 50,000 papers"
    )


class EngineConfig(RunConfig):
    """What an engine is built from, whether it writes answers or scores them."""

    engine: Literal["auto", "echo", "http", "transformers", "vllm"] = Field(
        "auto",
        description="what runs the model: auto = vllm where a worker can import it, else transformers; http = an "
        "endpoint at --base_url; echo needs no model",
    )
    cache_dir: str = Field("./cache", description="folder for downloaded and converted models")
    context_size: int | None = Field(
        None, ge=16, description="context length of the fine-tuning, tokens (default: the model's)"
    )
    seq_len: int | None = Field(
        None, ge=16, description="cap on prompt + answer, tokens; at most context_size (the default)"
    )
    prompt_template: str | None = Field(
        None, description="llama2, chat or a file with {instruction} and {input} (default: the model's own)"
    )
    flash_attn: bool = Field(True, description="use flash-attn where a GPU and the package are there")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="weights and activations; auto = bfloat16 where the hardware has it"
    )
    gpus_per_actor: float | None = Field(
        None, ge=0, description="GPUs an actor takes (default: 1 if the cluster has GPUs, else 0)"
    )
    cpus_per_actor: float = Field(1, ge=0, description="logical CPUs an actor takes")
    threads_per_actor: int | None = Field(
        None, ge=1, description="CPU threads of an actor (default: cores / largest number of actors)"
    )
    batch_tokens: int | None = Field(
        None, ge=16, description="token budget of the key-value cache of an actor (default: from its memory)"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="vllm: GPUs that share each layer of a model")
    pipeline_parallel_size: int = Field(1, ge=1, description="vllm: groups of GPUs that share out a model's layers")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="vllm: share of a GPU's memory that it takes")
    vllm_args: str | None = Field(
        None, description='vllm: further engine arguments, as JSON: {"max_num_batched_tokens": 8192}'
    )
    papers_per_shard: int = Field(500, ge=1, le=100_000, description="papers in one shard of OUT/papers")
    trust_remote_code: bool = Field(False, description="run the code that a model folder brings along")

    @field_validator("vllm_args")
    @classmethod
    def _vllm_args(cls, value: str | None) -> str | None:
        if value is not None and not isinstance(_json(value), dict):
            raise ValueError(f"must be a JSON object, got {value!r}")
        return value

    @model_validator(mode="after")
    def _lengths(self) -> EngineConfig:
        if self.seq_len and self.context_size and self.seq_len > self.context_size:
            raise ValueError(seq_len_message(self.seq_len, self.context_size))
        return self

    @property
    def model(self) -> str | None:
        """The causal language model's name; None: the engine needs none."""
        raise NotImplementedError

    @property
    def pool(self) -> tuple[int, int]:
        """Fewest and most engine actors."""
        raise NotImplementedError


class GenerateConfig(EngineConfig):
    """Papers to question-answer pairs."""

    file_path: str = Field(description="papers: a JSON list, JSONL or Parquet file, a folder, a glob or a URI")
    base_model: str | None = Field(None, description="a local path, a hub id or bundled:NAME")
    temperature: float = Field(0.6, ge=0, le=10, description="sampling temperature; 0 = greedy")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus sampling mass")
    max_gen_len: int = Field(2048, ge=1, description="cap on the answer, tokens")
    request: str | None = Field(
        None, description="text file that replaces the request, with the slots {paper} and {format}"
    )
    language: str | None = Field(None, description="language of the pairs, such as German (default: the paper's)")
    min_gen_len: int = Field(0, ge=0, description="no end of text before so many tokens (for benchmarks)")
    num_qas: int = Field(10, ge=1, le=100, description="pairs wanted of each paper")
    overlength: Literal["truncate", "skip", "split"] = Field(
        "truncate", description="a paper beyond the budget: cut its tail, reject it, or ask window by window"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the random streams, one per (doi, window, attempt)")
    max_attempts: int = Field(2, ge=1, le=20, description="times a paper is asked until it has num_qas pairs")
    limit: int | None = Field(None, ge=1, description="read only the first so many records")
    actors: str = Field("1:1", description="engine actors, MIN:MAX")
    max_batch: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="papers decoded together at most (default: 16 on a CPU; on a GPU 64, with vllm 256)",
    )
    structured: bool = Field(
        False, description="vllm, http: the answer is held to a JSON list of pairs, token by token"
    )
    base_url: str | None = Field(
        None, description="http: an OpenAI-compatible endpoint, http://host:8000/v1; its key: QARAY_API_KEY"
    )
    served_model: str | None = Field(
        None, description="http: the model's name at the endpoint (default: the first that it serves)"
    )
    requests_at_once: int = Field(64, ge=1, description="http: requests in flight, in all")
    requests_per_second: float | None = Field(None, gt=0, description="http: most requests begun a second, in all")
    http_retries: int = Field(5, ge=0, description="http: times that a request is sent again after 429, 5xx, no answer")
    request_timeout: float = Field(1800, gt=0, description="http: seconds that one request may take")
    echo_seconds: float = Field(0.0, ge=0, description="echo: seconds per answer, to try a pipeline at a model's pace")
    gpu_hour_price: float | None = Field(
        None, gt=0, description="price of a GPU for an hour, in any currency: the manifest says what pairs cost"
    )

    @field_validator("actors")
    @classmethod
    def _actors(cls, value: str) -> str:
        parse_pool(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if self.engine not in NO_MODEL_ENGINES and not self.base_model:
            raise ValueError(f"--base_model is needed by --engine {self.engine}; only echo works without a model")
        if self.min_gen_len > self.max_gen_len:
            raise ValueError(f"min_gen_len {self.min_gen_len} exceeds max_gen_len {self.max_gen_len}")
        if (self.engine == "http") != bool(self.base_url):
            raise ValueError("--engine http and --base_url belong together")
        if self.base_url and not re.match(r"https?://[^/]", self.base_url):
            raise ValueError(f"base_url must be http://… or https://…, got {self.base_url!r}")
        if self.structured and self.engine in ("transformers", "echo"):
            raise ValueError(f"--structured is not served by --engine {self.engine}: choose vllm or http")
        return self

    @property
    def model(self) -> str | None:
        return self.base_model

    @property
    def pool(self) -> tuple[int, int]:
        return parse_pool(self.actors)


METRICS = ("coverage", "similarity", "racar", "grounding")


class Measures(Config):
    """What is measured, and with what."""

    metrics: str = Field(",".join(METRICS), description="a comma-separated subset")
    embedding_model: str | None = Field(
        None, description="a sentence-transformers folder or hub id, bundled:NAME, or echo (default: bundled:minilm)"
    )
    query_instruction: str = Field(
        "", description="put before a pair when it is embedded, as models like e5-mistral want it"
    )
    judge_model: str | None = Field(
        None, description="causal LM that scores: a path, a hub id or bundled:NAME (default: bundled:smollm2-135m)"
    )
    judge_above: float = Field(
        -1.0, ge=-1, le=1, description="judge only questions with at least this cosine; -1 = all"
    )
    control_papers: int = Field(
        100, ge=0, description="papers, about, whose pairs also test the judge: paraphrases, swapped answers"
    )
    duplicate_cosine: float = Field(
        0.9, gt=0, le=1, description="questions of different papers at least so near count as duplicates"
    )
    embed_actors: str = Field("1:1", description="embedding actors, MIN:MAX")
    embed_block: int | None = Field(
        None, ge=1, description="papers that an embedding actor takes at once (default: 64 on GPUs, 4 elsewhere)"
    )
    judge_actors: str = Field("1:1", description="judge actors, MIN:MAX")

    @field_validator("embed_actors", "judge_actors")
    @classmethod
    def _pools(cls, value: str) -> str:
        parse_pool(value)
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if unknown := [name for name in names if name not in METRICS]:
            raise ValueError(f"knows no {unknown[0]!r}: choose from {', '.join(METRICS)}")
        if not names:
            raise ValueError(f"names none: choose from {', '.join(METRICS)}")
        return ",".join(name for name in METRICS if name in names)


class EvaluateConfig(Measures, EngineConfig):
    """Question-answer pairs to scores. The engine and its flags are the judge's."""

    output_dir: str = Field("", description="a run directory of generate, or a folder to write")
    processed_output: str | None = Field(
        None, description="pairs made anywhere: a processed output with the papers' txt (default: those of the run)"
    )
    compare: tuple[str, str] | None = Field(
        None, description="two evaluated runs A B: their paired differences with intervals, and nothing else"
    )

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        if not self.compare and not self.output_dir:
            raise ValueError("--output_dir is required")
        if self.engine == "http":
            raise ValueError("--engine http gives no scores: judge with transformers or vllm")
        return self

    @property
    def judges(self) -> bool:
        """Whether a judge is needed."""
        return "similarity" in self.measures or "racar" in self.measures

    @property
    def embeds(self) -> bool:
        """Whether an embedding model is needed."""
        return "similarity" in self.measures or "coverage" in self.measures

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self.metrics.split(","))

    @property
    def model(self) -> str | None:
        if self.engine in NO_MODEL_ENGINES:
            return self.judge_model
        return self.judge_model or "bundled:smollm2-135m"

    @property
    def embedder(self) -> str:
        """Name of the embedding model. The echo engine's runs embed without a model, too."""
        return self.embedding_model or ("echo" if self.engine == "echo" else "bundled:minilm")

    @property
    def pool(self) -> tuple[int, int]:
        return parse_pool(self.judge_actors)

    @property
    def embed_pool(self) -> tuple[int, int]:
        return parse_pool(self.embed_actors)


class PipelineConfig(Measures, GenerateConfig):
    """Papers to question-answer pairs, their scores and the report: generate, then evaluate."""

    judge_engine: Literal["auto", "echo", "transformers", "vllm"] | None = Field(
        None, description="what runs the judge (default: echo with --engine echo, else auto)"
    )
    judge_seq_len: int | None = Field(None, ge=16, description="cap on what the judge reads, tokens")

    @property
    def generation(self) -> GenerateConfig:
        return GenerateConfig(**self._fields(GenerateConfig))

    @property
    def evaluation(self) -> EvaluateConfig:
        """Of what both have, the judge takes the machines' settings; lengths, template and engine are its own."""
        shared = self._fields(EvaluateConfig)
        for name in ("engine", "context_size", "seq_len", "prompt_template", "batch_tokens", "vllm_args"):
            shared.pop(name)
        engine = self.judge_engine or ("echo" if self.engine == "echo" else "auto")
        return EvaluateConfig(**shared, engine=engine, seq_len=self.judge_seq_len)

    def _fields(self, kind: type[Config]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in kind.model_fields if name in type(self).model_fields}


class FineTuneConfig(DriverConfig):
    """Examples {instruction, input, output} to a fine-tuned model.

    All other flags are those of transformers' TrainingArguments: --num_train_epochs, --learning_rate, --bf16 and so on.
    """

    more_flags: ClassVar[str] = "training"

    model_name_or_path: str = Field(description="the model to fine-tune: a local path, a hub id or bundled:NAME")
    data_path: str = Field(description="examples: a JSON list, JSONL or Parquet file, a folder, a glob or a URI")
    eval_data_path: str | None = Field(
        None, description="examples that are kept out: their loss is measured before and after"
    )
    model_max_length: int = Field(12288, ge=16, description="cap on prompt + answer, tokens; RoPE is scaled to it")
    overlength: Literal["truncate", "shorten", "reject"] = Field(
        "truncate",
        description="an example beyond the cap: cut its end, cut the paper so that the whole answer fits, or reject it",
    )
    use_flash_attn: bool = Field(True, description="use flash-attn where a GPU and the package are there")
    use_full_attn: bool = Field(False, description="True: full attention in training, else S²-Attn")
    s2_group_size: int | None = Field(
        None, ge=2, description="tokens in a group of S²-Attn (default: a quarter of 4096·n tokens, else 8192)"
    )
    low_rank_training: bool = Field(False, description="LoRA on q, k, v, o, and trainable_params in full")
    trainable_params: str = Field("embed,norm", description="parts of parameter names that low-rank training trains")
    lora_r: int = Field(8, ge=1, description="rank of low-rank training")
    lora_alpha: int = Field(16, ge=1, description="scale of low-rank training")
    prompt_template: str = Field("llama2", description="llama2, chat or a file with {instruction} and {input}")
    request: str | None = Field(
        None, description="the request that the examples were made with, if not the default: make-sft's --request"
    )
    language: str | None = Field(None, description="the language that the examples were made with: make-sft's")
    cache_dir: str = Field("./cache", description="folder for downloaded and converted models")
    trust_remote_code: bool = Field(False, description="run the code that a model folder brings along")
    deepspeed: str | None = Field(None, description="DeepSpeed's JSON, such as ds_configs/stage3.json")
    num_workers: int = Field(1, ge=1, description="training processes, one a GPU")
    use_gpu: bool | None = Field(None, description="train on GPUs (default: where the cluster has any)")
    cpus_per_worker: float = Field(1, gt=0, description="logical CPUs a worker takes")
    storage_path: str | None = Field(
        None, description="where checkpoints go: a folder that all machines share, or a URI (default: output_dir)"
    )
    run_name: str = Field(
        "checkpoints", pattern=r"^[\w.-]+$", description="their folder there; the same name again goes on"
    )
    max_failures: int = Field(3, ge=-1, description="times that lost workers are replaced; -1 = without end")
    training: dict[str, str] = Field({}, description="flags of transformers' TrainingArguments")

    @field_validator("output_dir")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                f"{value}: a fine-tuning writes to a local disk, or one that all machines share; "
                "only --storage_path, where checkpoints go, may be a URI"
            )
        return value


class MakeSftConfig(Config):
    """Papers and their pairs to training examples, by the prompts that generation uses."""

    processed_output: str = Field(description="pairs made anywhere: a processed output with the papers' txt")
    output: str = Field(description="file to write: .json, .jsonl or .parquet")
    min_pairs: int = Field(1, ge=1, description="papers with fewer pairs are left out")
    request: str | None = Field(
        None, description="text file that replaces the request, with the slots {paper} and {format}"
    )
    language: str | None = Field(None, description="language of the pairs, such as German (default: the paper's)")


class ExportConfig(Config):
    """A checkpoint of a fine-tuning to a model folder."""

    positional: ClassVar[tuple[str, ...]] = ("checkpoint", "output_dir")

    checkpoint: str = Field(description="a checkpoint folder, or a run_name folder whose last one is taken")
    output_dir: str = Field(description="model folder to write")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of the weights; auto = bfloat16, or float16 where it was trained so"
    )


class ParseConfig(Config):
    """Original outputs made anywhere to processed output."""

    original_output: str = Field(description="JSON list or JSONL of {doi, output}; `input` is optional")
    file_path: str = Field(description="the papers that the outputs belong to")
    output_dir: str = Field(description="folder for processed_output.json and rejected.jsonl")
    num_qas: int = Field(10, ge=1, le=100, description="pairs that count as a complete paper")


class ReportConfig(Config):
    """A finished run to its report."""

    output_dir: str = Field(description="a run directory")
    report_papers: int = Field(1000, ge=0, description="papers that get a page of the report, the first ones")


class PlanConfig(Config):
    """A finished run's figures to the hours and the cost of a corpus."""

    output_dir: str = Field(description="a finished run directory of generate")
    papers: int = Field(ge=1, description="papers of the corpus")
    gpus: int = Field(1, ge=1, description="GPUs that will work on it (devices, if the run had no GPU)")
    gpu_hour_price: float | None = Field(None, gt=0, description="price of a GPU for an hour (default: the run's)")
    paper_tokens: int | None = Field(None, ge=1, description="mean tokens of a paper (default: the run's)")


class StatusConfig(Config):
    """How far a run is, from its files."""

    positional: ClassVar[tuple[str, ...]] = ("output_dir",)

    output_dir: str = Field(description="a run directory, of a run that works, was cut short or is done")
    json_lines: bool = Field(False, description="True: one line of JSON instead of words")
    watch: float | None = Field(None, gt=0, description="say it again after so many seconds, until the run ends")


class SubmitConfig(Config):
    """A command to a Ray cluster, as a job: `qaray submit generate --address … --file_path …`."""

    positional: ClassVar[tuple[str, ...]] = ("command",)
    more_flags: ClassVar[str] = "flags"

    command: str = Field(description="generate, evaluate, fine-tune or run")
    address: str | None = Field(
        None, description="the cluster's job server, http://head:8265 (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS)"
    )
    working_dir: str = Field(".", description="the checkout whose jobs/ are run: a folder, or a URI of its archive")
    submission_id: str | None = Field(None, description="the job's name (default: from the command and the time)")
    token_file: str | None = Field(
        None,
        description="file with the cluster's token (default: RAY_AUTH_TOKEN, or Ray's own ~/.ray/auth_token)",
    )
    pip: str | None = Field(None, description="requirements file that the job's environment is made from")
    env: str | None = Field(None, description="names of environment variables to hand over, comma-separated")
    resubmit: int = Field(2, ge=0, le=100, description="times that a job that failed is submitted again")
    wait: bool = Field(True, description="False: return once the job is submitted")
    flags: dict[str, str] = Field({}, description="flags of the command")


class DemoConfig(Config):
    """The main job on the sample papers with the bundled models."""

    output_dir: str = Field("runs/demo", description="run directory to write")
    cache_dir: str = Field("./cache", description="folder for the converted model")
    num_qas: int = Field(5, ge=1, le=100, description="pairs wanted of each paper")
    max_gen_len: int = Field(200, ge=1, description="cap on the answer, tokens")
    no_progress: bool = Field(False, description="True: no progress lines")
    debug: bool = Field(False, description="True: show the logs of Ray, vLLM and the workers, and full tracebacks")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def parse_pool(text: str) -> tuple[int, int]:
    """``MIN:MAX`` or ``N`` to (min, max). Raises ValueError on anything else."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise ValueError(f"must be MIN:MAX with 1 ≤ MIN ≤ MAX, got {text!r}")
    return low, high


def parse_labels(text: str | None) -> dict[str, str]:
    """``KEY=VALUE,…`` as a mapping. Raises ValueError on anything else."""
    labels = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"must be KEY=VALUE,…, got {text!r}")
        labels[key] = value
    return labels


def seq_len_message(seq_len: int, context_size: int) -> str:
    return (
        f"seq_len {seq_len} exceeds context_size {context_size}: lower --seq_len or use a model "
        "fine-tuned for a longer context"
    )


def _one_line(config: type[BaseModel], error: Any) -> str:
    """One mistake of pydantic's in our words: field, consequence, value."""
    name = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    if error["type"] == "missing":
        return f"--{name} is required"
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{name} {message}" if name else message
    limits = _limits(config, name)
    if limits and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{name} must be {limits}, got {value}"
    what = error["msg"].replace("Input should be ", "must be ").replace("Input ", "")
    return f"{name} {what}, got {value!r}"


def _limits(config: type[BaseModel], name: str) -> str:
    """The bounds of a field in words, '' where it has none."""
    field = config.model_fields.get(name)
    bounds = {
        k: getattr(m, k) for m in (field.metadata if field else []) for k in ("ge", "gt", "le", "lt") if hasattr(m, k)
    }
    if "ge" in bounds and "le" in bounds:
        return f"between {bounds['ge']} and {bounds['le']}"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{words[key]} {bound}" for key, bound in bounds.items())
