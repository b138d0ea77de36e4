"""The vLLM engine, built on ray.data.llm, whose processor starts, places and feeds the vLLM engines.

Two things are added to its stage, in the actor that holds an engine. A prompt whose answer has too few pairs is retried
immediately, while its keys and values are in vLLM's prefix cache. A score request becomes one vLLM request for each
position where the choices diverge: the prefix cache holds the shared tokens, and one decoding step returns the
log-probabilities of the tokens with which the choices continue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from qaray.asking.grammar import json_schema, stop_strings
from qaray.config import ConfigError, EngineConfig, GenerateConfig
from qaray.engines.attempts import as_completed, attempts, attempts_of, select, stream_seed, unpacked
from qaray.engines.base import Engine
from qaray.engines.choices import TokenizedSuffix, tokenised
from qaray.engines.endings import LONGEST_PERIOD, LOOP_TOKENS, ending
from qaray.engines.guarded import TOO_MANY_DEATHS, given_up, prompt_key, request_key
from qaray.engines.pool import Share, Startup, describe_pool, worker_name
from qaray.engines.worker import WorkerInfo
from qaray.models.catalogue import resolve
from qaray.models.loading import load_config, one_line
from qaray.models.planner import ModelPlan
from qaray.models.rope import scale_rope
from qaray.models.shape import model_shape
from qaray.models.tokenizer import eos_ids, load_tokenizer
from qaray.run.cluster import DEBUG, LIGHT, debugging, quiet_llm
from qaray.run.errors import RunError
from qaray.run.stopping import StopCheck
from qaray.run.tries import Guard, Tries
from qaray.schema import (
    PROMPT_COLUMNS,
    REQUEST_COLUMNS,
    Completion,
    Failure,
    Prompt,
    RejectReason,
    ScoreRequest,
    complete,
    failed,
    failure_of,
    with_scores,
)

if TYPE_CHECKING:
    from ray.data import Dataset

MAX_SEQUENCES = {"cpu": 16, "cuda": 256}  # sequences that an engine decodes concurrently
AHEAD = 1.5  # prompts held per sequence: the next one is ready when one finishes
ROWS_SCORED = 8  # prefixes (usually papers) per block, lost together if an actor dies
CPU_CACHE_SHARE = 0.25  # share of the free memory for keys and values
PROBE = (7, 44, 81, 118)  # token ids that check a model's logits
STAGE = "vLLMEngineStage"
PARAMETERS = "sampling_params"


class VLLMEngine(Engine):
    def __init__(
        self, config: EngineConfig, plan: ModelPlan, worker: WorkerInfo, should_stop: StopCheck, tries: Tries
    ) -> None:
        self.config, self.plan, self.worker, self.should_stop, self.tries = config, plan, worker, should_stop, tries

    def describe(self) -> str:
        actors = describe_pool(self.config.pool)
        where = f"{self._devices()} GPU each" if self.worker.gpus else "CPUs"
        return f"vllm {self.worker.vllm}, {actors} on {where} ({self.worker.device}), {self.worker.dtype}"

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        assert isinstance(self.config, GenerateConfig)
        work = _Generation(self.config, _eos_ids(self.config), self.should_stop)
        share = Share.of(self._max_sequences(), AHEAD, self.config.pool[0], expected)
        done = self._processor(work, share)(share.blocks(prompts).select_columns(list(PROMPT_COLUMNS)))
        return done.map_batches(unpacked, batch_size=None, batch_format="pyarrow", num_cpus=LIGHT)

    def score(self, requests: Dataset) -> Dataset:
        work = _Scoring(self.config, self.plan.seq_len, self.should_stop)
        done = self._processor(work, Share(ROWS_SCORED, 2, 3))(requests)
        return done.map_batches(_unpacked_scores, batch_size=None, batch_format="pyarrow", num_cpus=LIGHT)

    def _processor(self, work: _Generation | _Scoring, share: Share) -> Any:
        """The ray.data.llm processor with ``work`` in its stage; it returns the columns of ``work.keep``."""
        with quiet_llm():
            return self._built(work, share)

    def _built(self, work: _Generation | _Scoring, share: Share) -> Any:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config = vLLMEngineProcessorConfig(
            model_source=resolve(self.config.model_name or "", self.config.model.cache_dir),
            engine_kwargs=self._engine_kwargs(),
            runtime_env={"env_vars": self._environment()},
            placement_group_config={"bundle_per_worker": self._bundle()},
            concurrency=self.config.pool,
            batch_size=share.rows,
            max_concurrent_batches=share.calls,
            max_tasks_in_flight_per_actor=share.in_flight,
            max_pending_requests=-(-11 * self._max_sequences() // 10),
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        light = {"num_cpus": LIGHT}
        processor = build_processor(
            config,
            preprocess=_with_parameters,
            postprocess=work.keep,
            preprocess_map_kwargs=light,
            postprocess_map_kwargs=light,
        )
        stage = processor.get_stage_by_name(STAGE)
        # A copy: setting a field would rerun the stage's set-up and lose its placement.
        changes: dict[str, Any] = {"fn": _stage_with(stage.fn, work, self.tries)}
        if self.config.cluster.labels:
            if self._backend() == "ray":
                raise ConfigError("--node_labels: not supported for an engine that spans several nodes")
            changes["map_batches_kwargs"] = {**stage.map_batches_kwargs, "label_selector": self.config.cluster.labels}
        processor.stages[STAGE] = stage.model_copy(update=changes)
        return processor

    def _engine_kwargs(self) -> dict[str, Any]:
        config, worker = self.config, self.worker
        arguments: dict[str, Any] = {
            "max_model_len": self.plan.seq_len,
            "max_num_seqs": self._max_sequences(),
            "dtype": worker.dtype,
            "tensor_parallel_size": config.vllm.tensor_parallel_size,
            "pipeline_parallel_size": config.vllm.pipeline_parallel_size,
            "enable_prefix_caching": True,
            "trust_remote_code": config.model.trust_remote_code,
            "load_format": "safetensors",
            "distributed_executor_backend": self._backend(),
        }
        if worker.gpus:
            arguments["gpu_memory_utilization"] = config.vllm.gpu_memory_utilization
        else:
            arguments["enforce_eager"] = True
            # vLLM rewinds a request's random generator after a partial prefill, which CPU generators do not support:
            # with a seed per prompt the engine would crash.
            arguments["enable_chunked_prefill"] = False
        if rope := self._rope():
            arguments["hf_overrides"] = {"rope_parameters": rope}
        return {**arguments, **json.loads(config.vllm.vllm_args or "{}")}

    def _rope(self) -> dict[str, Any] | None:
        """RoPE parameters that override the model's; None if they do not differ."""
        config, name = self.config, self.config.model_name or ""
        folder = resolve(name, config.model.cache_dir)
        hf = load_config(folder, config.model.cache_dir, config.model.trust_remote_code, name)
        before = dict(getattr(hf, "rope_parameters", None) or {})
        scale_rope(hf, self.plan.rope_factor)
        after = dict(getattr(hf, "rope_parameters", None) or {})
        return None if after == before else after

    def _environment(self) -> dict[str, str]:
        """Environment variables of the engine. vLLM's CPU build reads its settings from them."""
        level = "INFO" if debugging() else "ERROR"
        variables = {"VLLM_LOGGING_LEVEL": level, "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "1"}
        if self.worker.gpus:
            return variables
        threads = self.config.resources.threads_per_actor or max(1, self.worker.cores // self.config.pool[1])
        return {
            **variables,
            "VLLM_CPU_KVCACHE_SPACE": str(self._cpu_cache_gib()),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }

    def _cpu_cache_gib(self) -> int:
        """Size of the key-value cache on CPUs, whole GiB."""
        share = self.worker.free_memory * CPU_CACHE_SHARE / self.config.pool[1]
        if self.config.resources.batch_tokens:
            share = self.config.resources.batch_tokens * model_shape(self.config, self.worker.dtype).kv_bytes
        return max(1, round(share / 2**30))

    def _bundle(self) -> dict[str, float]:
        """Resources that Ray reserves for each worker of an engine."""
        return {"CPU": self.config.resources.cpus_per_actor, **({"GPU": self.worker.gpus} if self.worker.gpus else {})}

    def _backend(self) -> str:
        """vLLM's executor backend: processes if an engine's workers fit on one node, else Ray actors."""
        if not self.worker.gpus:
            return "mp"
        if self._devices() == 1:
            return "uni"
        import ray

        gpus_per_node = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        return "mp" if gpus_per_node >= self._devices() else "ray"

    def _devices(self) -> int:
        return self.config.vllm.gpus_per_engine

    def _max_sequences(self) -> int:
        wanted = self.config.max_batch if isinstance(self.config, GenerateConfig) else None
        return wanted or MAX_SEQUENCES["cuda" if self.worker.gpus else "cpu"]


def _stage_with(stage: type, work: _Generation | _Scoring, tries: Tries) -> type:
    """ray.data.llm's vLLM stage with rows answered by ``work``, which may send several engine requests per row."""

    class GuardedStage(stage):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._guard, self._startup = Guard(tries), Startup(tries)
            with self._startup(), starting_vllm(work.config.model_name or ""):
                super().__init__(*args, **options)
            self._probed: asyncio.Task[None] | None = None

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            self._startup.check()
            index_column = self.IDX_IN_BATCH_COLUMN

            async def engine(token_ids: Sequence[int], parameters: dict[str, Any]) -> dict[str, Any]:
                row = {"tokenized_prompt": list(token_ids), PARAMETERS: parameters, index_column: 0}
                async for output in super(GuardedStage, self).udf([row]):
                    return output
                raise RuntimeError("vLLM returned no output")

            async def answer(row: dict[str, Any]) -> dict[str, Any]:
                return {**await work(row, engine), index_column: row[index_column]}

            if self._probed is None:
                self._probed = asyncio.create_task(check_logits(engine, work.config.model_name or ""))
            await self._probed
            with contextlib.closing(self._guard.parts([work.key(row) for row in batch])) as parts:
                while part := await asyncio.to_thread(next, parts, None):  # the notes may be on remote storage
                    rows = [batch[index] for index in part.rows]
                    if part.given_up:
                        for row in rows:
                            yield {**work.give_up(row), index_column: row[index_column]}
                        continue
                    await asyncio.to_thread(self._guard.enter, part)
                    try:
                        async for done in as_completed([answer(row) for row in rows]):
                            yield done
                    finally:
                        self._guard.leave(part)

    return GuardedStage


@contextlib.contextmanager
def starting_vllm(name: str) -> Iterator[None]:
    """Turns an error of vLLM's start into one line. Raises ConfigError if its arguments are refused, else RunError."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"model {name}: vLLM: {one_line(error)}") from None
    except Exception as error:  # its engine runs in processes of its own, of whose errors only the log tells
        raise RunError(f"model {name}: vLLM did not start: {one_line(error)} ({DEBUG}=1 shows its log)") from None


async def check_logits(engine: Any, name: str) -> None:
    """Raises ConfigError if the model's log-probabilities are not finite: vLLM generates text all the same."""
    output = await engine(PROBE, {"temperature": 0.0, "max_tokens": 1, "logprobs": 1, "detokenize": False})
    logprobs = output["logprobs"] if not output["__inference_error__"] else None
    if logprobs and any(math.isnan(each["logprob"]) for each in logprobs[0].values()):
        raise ConfigError(f"model {name}: its logits are not finite: its weights are damaged")


@dataclass(frozen=True)
class _Generation:
    """Answers prompts with completions."""

    config: GenerateConfig
    eos_ids: frozenset[int]
    should_stop: StopCheck

    async def __call__(self, row: dict[str, Any], engine: Any) -> dict[str, Any]:
        prompt: Prompt = select(row, PROMPT_COLUMNS)

        async def once(attempt: Prompt) -> Completion:
            output = await engine(prompt["token_ids"], self._parameters(attempt))
            return self._completion(attempt, output)

        completions = await attempts_of(prompt, once, attempts(self.config), self.should_stop)
        return {"answers": completions}

    @staticmethod
    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {"answers": row["answers"]}

    @staticmethod
    def key(row: dict[str, Any]) -> str:
        return prompt_key(row)

    @staticmethod
    def give_up(row: dict[str, Any]) -> dict[str, Any]:
        prompt: Prompt = select(row, PROMPT_COLUMNS)
        return {"answers": [given_up(prompt)]}

    def _parameters(self, prompt: Prompt) -> dict[str, Any]:
        from vllm.sampling_params import RepetitionDetectionParams

        config = self.config
        seed = stream_seed(config.sampling.seed, prompt["doi"], prompt["window"], prompt["attempt"])
        parameters: dict[str, Any] = {
            "temperature": config.sampling.temperature,
            "top_p": config.sampling.top_p,
            "seed": seed % 2**63,
            "max_tokens": prompt["max_tokens"],
            "min_tokens": config.sampling.min_gen_len,
        }
        if config.asking.structured:
            parameters["structured_outputs"] = {"json": json_schema(prompt["num_qas"])}
        elif not config.sampling.min_gen_len:
            parameters["stop"] = stop_strings(prompt["num_qas"])
            parameters["repetition_detection"] = RepetitionDetectionParams(
                min_pattern_size=LOOP_TOKENS, max_pattern_size=LONGEST_PERIOD, min_count=2
            )
        return parameters

    def _completion(self, prompt: Prompt, output: dict[str, Any]) -> Completion:
        if problem := output["__inference_error__"]:
            return complete(prompt, failure=Failure.of(RejectReason.ENGINE_ERROR, problem))
        ids = list(output["generated_tokens"])
        ended = bool(ids) and ids[-1] in self.eos_ids
        at_limit = len(ids) >= prompt["max_tokens"] and not ended
        written = ids[:-1] if ended else ids
        text = prompt["opening"] + output["generated_text"]
        text, reason = ending(text, written, prompt["num_qas"], at_limit=at_limit, ended=ended)
        times = output["metrics"] or {}
        scheduled, last = times.get("scheduled_ts", 0.0), times.get("last_token_ts", 0.0)
        return complete(
            prompt,
            text,
            output_tokens=len(written),
            finish_reason=reason,
            seconds=last - scheduled,
            prefill_seconds=times.get("first_token_ts", scheduled) - scheduled,
            began=times.get("arrival_time", 0.0) + scheduled - times.get("queued_ts", scheduled),
            worker=worker_name(),
        )


@dataclass(frozen=True)
class _Scoring:
    """Answers score requests with log-probabilities."""

    config: EngineConfig
    seq_len: int  # tokens
    should_stop: StopCheck

    async def __call__(self, row: dict[str, Any], engine: Any) -> dict[str, Any]:
        if self.should_stop():
            return _result(None, None)
        request: ScoreRequest = select(row, REQUEST_COLUMNS)
        try:
            return _result(await self._logprobs(request, engine), None)
        except ValueError as problem:
            return _result(None, Failure.of(RejectReason.ENGINE_ERROR, problem))

    @staticmethod
    def key(row: dict[str, Any]) -> str:
        return request_key(row)

    @staticmethod
    def give_up(row: dict[str, Any]) -> dict[str, Any]:
        return _result(None, TOO_MANY_DEATHS)

    @staticmethod
    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name not in (*REQUEST_COLUMNS, PARAMETERS)}

    async def _logprobs(self, request: ScoreRequest, engine: Any) -> list[list[float]]:
        tokenizer = load_tokenizer(
            self.config.model_name or "", self.config.model.cache_dir, self.config.model.trust_remote_code
        )
        prefix, tokenized = tokenised(
            tokenizer, request["prefix"], request["suffixes"], request["choices"], self.seq_len
        )
        return list(await asyncio.gather(*(self._one(prefix, suffix, engine) for suffix in tokenized)))

    async def _one(self, prefix: list[int], suffix: TokenizedSuffix, engine: Any) -> list[float]:
        """Log-probabilities of the choices of one suffix."""
        heads = suffix.heads()
        steps = await asyncio.gather(*(self._step(prefix, head, tokens, engine) for head, tokens in heads.items()))
        logprobs = dict(zip(heads, steps, strict=True))
        return [
            sum(logprobs[tuple(ids[:place])][ids[place]] for place in range(suffix.own, len(ids)))
            for ids in suffix.sequences
        ]

    async def _step(self, prefix: list[int], head: tuple[int, ...], tokens: list[int], engine: Any) -> dict[int, float]:
        """Log-probabilities of ``tokens`` as the next token after prefix + head."""
        parameters = {"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": tokens, "detokenize": False}
        output = await engine([*prefix, *head], parameters)
        if problem := output["__inference_error__"]:
            raise ValueError(problem)
        logprobs = output["logprobs"][0]
        return {token: logprobs[token]["logprob"] for token in tokens}


def _result(logprobs: list[list[float]] | None, failure: Failure | None) -> dict[str, Any]:
    """A ScoreResult as one value of a row; both None: the request was skipped."""
    return {"result": {"logprobs": logprobs or [], **failed(failure)}}


def _with_parameters(row: dict[str, Any]) -> dict[str, Any]:
    """Adds the column that the stage requires; the actual parameters are built for each request."""
    return {PARAMETERS: ""}


def _unpacked_scores(rows: pa.Table) -> pa.Table:
    if not rows.num_rows:
        return rows
    results = rows["result"].to_pylist()
    answered = [n for n, result in enumerate(results) if result["logprobs"] or result["reason"]]  # others were skipped
    rows = rows.take(pa.array(answered, pa.int64())).drop_columns(["result"])
    logprobs = [results[n]["logprobs"] or None for n in answered]
    return with_scores(rows, logprobs, [failure_of(results[n]) for n in answered])


def _eos_ids(config: EngineConfig) -> frozenset[int]:
    return eos_ids(config.model_name or "", config.model.cache_dir, config.model.trust_remote_code)
