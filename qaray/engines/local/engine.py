"""The transformers engine: an autoscaling pool of actors, each a model with continuous batching.

Blocks are small, and an actor processes several concurrently: its slots stay filled across block boundaries, and little
work is lost if it dies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from qaray.config import EngineConfig, GenerateConfig
from qaray.engines.attempts import attempts, next_attempt
from qaray.engines.base import Engine
from qaray.engines.guarded import guarded_answers, guarded_scores
from qaray.engines.pool import Share, Startup, actor_resources, describe_pool, pool
from qaray.engines.worker import WorkerInfo
from qaray.models.planner import ModelPlan
from qaray.run.stopping import StopCheck
from qaray.run.telemetry import EngineMeter
from qaray.run.tries import Guard, Tries
from qaray.schema import (
    COMPLETION_SCHEMA,
    REQUEST_COLUMNS,
    Completion,
    Failure,
    Prompt,
    RejectReason,
    ScoreRequest,
    scored,
    table,
)

if TYPE_CHECKING:
    from ray.data import Dataset

    from qaray.engines.local.causal_lm import ModelSettings

ROWS_SCORED = 8  # prefixes (usually papers) per block, lost together if an actor dies
MAX_BATCH = {"cpu": 16, "cuda": 64}  # slots per actor
AHEAD = 1.5  # prompts held per slot: the next one is ready when one finishes


class TransformersEngine(Engine):
    def __init__(
        self, config: EngineConfig, plan: ModelPlan, worker: WorkerInfo, should_stop: StopCheck, tries: Tries
    ) -> None:
        self.config, self.plan, self.worker, self.should_stop, self.tries = config, plan, worker, should_stop, tries

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        max_batch = self._max_batch()
        share = Share.of(max_batch, AHEAD, self.config.pool[0], expected)
        return share.blocks(prompts).map_batches(
            _Generator,
            fn_constructor_args=(self.config, self._settings(), max_batch, self.should_stop, self.tries),
            batch_size=share.rows,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=pool(*self.config.pool, share.calls, share.in_flight),
            **actor_resources(self.config.resources.cpus_per_actor, self.worker.gpus, self.config.cluster.labels),
        )

    def score(self, requests: Dataset) -> Dataset:
        return requests.map_batches(
            _Scorer,
            fn_constructor_args=(self._settings(), self.should_stop, self.tries),
            batch_size=ROWS_SCORED,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=pool(*self.config.pool),
            **actor_resources(self.config.resources.cpus_per_actor, self.worker.gpus, self.config.cluster.labels),
        )

    def describe(self) -> str:
        gpus = self.worker.gpus
        if not gpus:
            return f"transformers, {describe_pool(self.config.pool)} on CPUs, attention on SDPA"
        has_flash = self.worker.flash_attn and self.config.model.flash_attn
        attention = "flash-attn" if has_flash else "SDPA (flash-attn is not installed or not wanted)"
        return f"transformers, {describe_pool(self.config.pool)} on {gpus:g} GPU each, attention on {attention}"

    def _settings(self) -> ModelSettings:
        from qaray.engines.local.causal_lm import ModelSettings

        config = self.config
        assert config.model_name is not None
        return ModelSettings(
            name=config.model_name,
            cache_dir=config.model.cache_dir,
            seq_len=self.plan.seq_len,
            rope_factor=self.plan.rope_factor,
            dtype=config.model.dtype,
            flash_attn=config.model.flash_attn,
            gpus=self.worker.gpus,
            threads=config.resources.threads_per_actor,
            actors=config.pool[1],
            batch_tokens=config.resources.batch_tokens,
            trust_remote_code=config.model.trust_remote_code,
        )

    def _max_batch(self) -> int:
        wanted = self.config.max_batch if isinstance(self.config, GenerateConfig) else None
        return wanted or MAX_BATCH["cuda" if self.worker.gpus else "cpu"]


class _Generator:
    """Actor that answers blocks of prompts. Called from several threads, one per block."""

    def __init__(
        self, config: GenerateConfig, settings: ModelSettings, max_batch: int, should_stop: StopCheck, tries: Tries
    ) -> None:
        from qaray.engines.local.batching import ContinuousBatcher
        from qaray.engines.local.causal_lm import CausalLM
        from qaray.engines.local.sampling import Sampling

        self.guard, self.startup = Guard(tries), Startup(tries)
        sampling = Sampling(
            config.sampling.temperature, config.sampling.top_p, config.sampling.seed, config.sampling.min_gen_len
        )
        self.max_attempts = attempts(config)
        self.should_stop = should_stop
        with self.startup():
            self.batcher = ContinuousBatcher(CausalLM(settings), sampling, max_batch, self._again, should_stop)
            EngineMeter(self.batcher.figures)

    def __call__(self, prompts: pa.Table) -> pa.Table:
        self.startup.check()
        return guarded_answers(self.guard, prompts, self._answers)

    def _answers(self, prompts: pa.Table) -> pa.Table:
        return table(self.batcher.complete_all(prompts.to_pylist()), COMPLETION_SCHEMA)

    def _again(self, prompt: Prompt, completion: Completion) -> Prompt | None:
        """The next attempt of a prompt with too few pairs; None if the run stops."""
        return None if self.should_stop() else next_attempt(prompt, completion, self.max_attempts)


class _Scorer:
    """Actor that scores blocks of requests."""

    def __init__(self, settings: ModelSettings, should_stop: StopCheck, tries: Tries) -> None:
        from qaray.engines.local.causal_lm import CausalLM
        from qaray.engines.local.scoring import Scorer

        self.should_stop = should_stop
        self.guard, self.startup = Guard(tries), Startup(tries)
        with self.startup():
            self.scorer = Scorer(CausalLM(settings))

    def __call__(self, requests: pa.Table) -> pa.Table:
        self.startup.check()
        return guarded_scores(self.guard, requests, self._scores)

    def _scores(self, requests: pa.Table) -> pa.Table:
        prefixes = requests["prefix"].to_pylist()
        answers = {}
        for row in sorted(range(requests.num_rows), key=lambda row: prefixes[row]):  # common prefixes adjacent
            if not self.should_stop():
                answers[row] = self._answer(requests.slice(row, 1).select(list(REQUEST_COLUMNS)).to_pylist()[0])
        rows = sorted(answers)
        return scored(requests.take(rows), [answers[row][0] for row in rows], [answers[row][1] for row in rows])

    def _answer(self, request: ScoreRequest) -> tuple[list[list[float]] | None, Failure | None]:
        """(log-probabilities, failure) of one request: its failure does not affect the others."""
        import torch

        try:
            return self.scorer.logprobs(request["prefix"], request["suffixes"], request["choices"]), None
        except (ValueError, torch.OutOfMemoryError) as problem:
            return None, Failure.of(RejectReason.ENGINE_ERROR, problem)
