"""The identity of a generation run, and its manifest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from qaray.config import GenerateConfig
from qaray.corpus.doi_index import Ingested
from qaray.engines import WorkerInfo
from qaray.generate.outputs import Totals
from qaray.generate.rounds import Progress
from qaray.models.planner import ModelPlan
from qaray.run.directory import Run, utc_now
from qaray.run.manifests import git_commit, versions


def generation_identity(config: GenerateConfig, plan: ModelPlan) -> dict[str, Any]:
    """The settings that identify a run; a start with other values is refused."""
    return {
        "engine": config.engine,
        "base_model": config.base_model,
        "template": plan.template.name,
        "template_sha256": plan.template.sha256,
        "request_sha256": plan.request.sha256,
        "context_size": plan.context_size,
        "seq_len": plan.seq_len,
        "rope_factor": plan.rope_factor,
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "max_gen_len": config.sampling.max_gen_len,
        "min_gen_len": config.sampling.min_gen_len,
        "num_qas": config.asking.num_qas,
        "overlength": config.asking.overlength,
        "seed": config.sampling.seed,
        "dtype": config.model.dtype,
        **({"structured": True} if config.asking.structured else {}),
        **_endpoint_identity(config),
    }


def _endpoint_identity(config: GenerateConfig) -> dict[str, Any]:
    """The served model and the API. The address is not part of it: a server may move."""
    if config.engine != "http":
        return {}
    return {"served_model": config.endpoint.served_model, "api": config.endpoint.api}


def _prices(config: GenerateConfig) -> dict[str, Any]:
    """The prices of an endpoint's tokens, where they are known."""
    endpoint = config.endpoint
    if endpoint.input_price is None:
        return {}
    return {"prices": {"input": endpoint.input_price, "output": endpoint.output_price}}


@dataclass(frozen=True)
class Account:
    """What the manifest of a generation run is made from."""

    config: GenerateConfig
    engine_reason: str  # why this engine was chosen
    worker: WorkerInfo
    papers: Ingested
    progress: Progress
    totals: Totals
    seconds: float  # duration of this start

    @property
    def devices(self) -> float:
        """GPUs per worker; 1 for a worker without a GPU."""
        shared = self.config.vllm.gpus_per_engine
        return (self.worker.gpus or 1.0) * (shared if self.config.engine == "vllm" else 1)


def generation_manifest(run: Run, account: Account) -> dict[str, Any]:
    """The manifest of a run. A start that generated nothing keeps the figures of the last one that did."""
    config, totals, papers = account.config, account.totals, account.papers
    previous = run.read_manifest() or {}
    work, loading = _last_start(account)
    if account.progress.prompts == 0 and {"last_start", "ledger"} <= previous.keys():
        work, loading = previous["last_start"], previous["ledger"]["loading_seconds_per_worker"]
    worker, devices = account.worker, account.devices
    used = totals.ledger.utilisation(worker.shape, worker.peaks, devices)
    paid = config.endpoint.cost(totals.prompt_tokens, totals.output_tokens)
    return {
        "run": run.stored_identity(),
        "versions": versions(),
        "git_commit": git_commit(),
        "engine": {
            "name": config.engine,
            "why": account.engine_reason,
            "actors": config.actors,
            "device": worker.device or None,
            "gpus_per_actor": worker.gpus,
        },
        "inputs": papers.sources,
        "counts": {
            "records": papers.papers + papers.rejected,
            "papers": totals.papers,
            "papers_with_pairs": totals.with_pairs,
            "rejected": sum(totals.rejected.values()),
            "pairs": totals.pairs,
            "prompts": totals.prompts,
            "by_status": dict(totals.status),
            "by_finish_reason": dict(totals.finish),
            "answers_without_pairs": dict(totals.without_pairs),
            "by_reject_reason": dict(totals.rejected),
            "truncated_papers": totals.truncated_papers,
        },
        "changed": {"papers": papers.changed, "dois": papers.changed_dois},  # another text in the input than in the run
        "left_out": dict(papers.left_out),  # papers by what was wrong with an optional field
        "tokens": {
            "papers": papers.tokens,
            "prompts": totals.prompt_tokens,
            "outputs": totals.output_tokens,
            "truncated": totals.truncated_tokens,
        },
        "answer_seconds": round(totals.answer_seconds, 2),
        "ledger": totals.ledger.account(devices, loading, totals.pairs, config.gpu_hour_price, used, paid),
        **_prices(config),
        "bytes": run.size(),
        "last_start": work,
    }


def _last_start(account: Account) -> tuple[dict[str, Any], float]:
    """(figures of this start, seconds until an engine admitted its first prompt)."""
    progress = account.progress
    generation = time.monotonic() - progress.begun
    engine_up = (progress.first_answer or progress.begun) - progress.begun
    loading = max(0.0, (progress.first_admission or progress.began) - progress.began)
    work = {
        "finished": utc_now(),
        "seconds": round(account.seconds, 2),
        "generate_seconds": round(generation, 2),
        "seconds_to_first_answer": round(engine_up, 2),
        "prompts": progress.prompts,
        "output_tokens_per_second": round(progress.output_tokens / generation, 2) if generation else 0.0,
        "prompt_tokens_per_second": round(progress.prompt_tokens / generation, 2) if generation else 0.0,
    }
    return work, loading
