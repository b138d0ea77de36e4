"""What identifies a run, and its account at the end."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from qaray import judge, models
from qaray.config import EvaluateConfig, GenerateConfig
from qaray.doi_index import Ingested
from qaray.engines import Site
from qaray.generate import Progress
from qaray.outputs import Totals
from qaray.prompts import INSTRUCTION, REQUEST
from qaray.runs import THE_RUN, Run, utc_now

LIBRARIES = ("qaray", "ray", "torch", "transformers", "sentence-transformers", "pyarrow", "vllm")


def generation_identity(config: GenerateConfig, plan: models.ModelPlan) -> dict[str, Any]:
    """What may not change between two starts of a run."""
    return {
        "engine": config.engine,
        "base_model": config.base_model,
        "template": plan.template.name,
        "template_sha256": plan.template.sha256,
        "request_sha256": _sha256(INSTRUCTION + "\0" + REQUEST),
        "context_size": plan.context_size,
        "seq_len": plan.seq_len,
        "rope_factor": plan.rope_factor,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_gen_len": config.max_gen_len,
        "min_gen_len": config.min_gen_len,
        "num_qas": config.num_qas,
        "overlength": config.overlength,
        "seed": config.seed,
        "dtype": config.dtype,
        **({"structured": True} if config.structured else {}),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Account:
    """What a generation run has to tell at its end."""

    config: GenerateConfig
    why: str  # the engine is this one
    site: Site
    papers: Ingested
    progress: Progress
    totals: Totals
    seconds: float  # of this start

    @property
    def devices(self) -> float:
        """GPUs of a worker; 1 where it has none."""
        shared = self.config.tensor_parallel_size * self.config.pipeline_parallel_size
        return (self.site.gpus or 1.0) * (shared if self.config.engine == "vllm" else 1)


def generation_manifest(run: Run, account: Account) -> dict[str, Any]:
    """The run's account. A start that generated nothing keeps the figures of the one that did."""
    config, totals, papers = account.config, account.totals, account.papers
    previous = run.manifest.read_json() or {}
    work, loading = _last_start(account)
    if account.progress.prompts == 0 and previous:
        work, loading = previous["last_start"], previous["ledger"]["loading_seconds_per_worker"]
    site, devices = account.site, account.devices
    used = totals.ledger.utilisation(site.shape, site.peaks, devices)
    return {
        "run": run.identity.read_json(),
        "versions": versions(),
        "git_commit": git_commit(),
        "engine": {
            "name": config.engine,
            "why": account.why,
            "actors": config.actors,
            "device": site.device or None,
            "gpus_per_actor": site.gpus,
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
            "by_reject_reason": dict(totals.rejected),
            "truncated_papers": totals.truncated_papers,
        },
        "tokens": {
            "papers": papers.tokens,
            "prompts": totals.prompt_tokens,
            "outputs": totals.output_tokens,
            "truncated": totals.truncated_tokens,
        },
        "answer_seconds": round(totals.answer_seconds, 2),
        "ledger": totals.ledger.account(devices, loading, totals.pairs, config.gpu_hour_price, used),
        "bytes": run.size(),
        "last_start": work,
    }


def _last_start(account: Account) -> tuple[dict[str, Any], float]:
    """(figures of this start, seconds until an engine took its first prompt)."""
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


def evaluation_identity(config: EvaluateConfig, plan: models.ModelPlan | None) -> dict[str, dict[str, Any]]:
    """Metric → what may not change between two starts of an evaluation."""
    embedding = {
        "embedding_model": config.embedder,
        "query_instruction": config.query_instruction,
        "dtype": config.dtype,
    }
    parts: dict[str, dict[str, Any]] = {"coverage": embedding, "grounding": {}}
    if plan is not None:
        judging = {
            "engine": config.engine,
            "judge_model": config.model,
            "template_sha256": plan.template.sha256,
            "seq_len": plan.seq_len,
            "rope_factor": plan.rope_factor,
            "dtype": config.dtype,
        }
        parts["similarity"] = {
            **judging,
            **embedding,
            "judge_above": config.judge_above,
            "rubric_sha256": _sha256(judge.INSTRUCTION + "\0" + judge.SIMILARITY_RUBRIC + judge.TWO_QUESTIONS),
        }
        parts["racar"] = {
            **judging,
            "rubric_sha256": _sha256(judge.INSTRUCTION + "\0" + judge.RACAR_RUBRIC + judge.ONE_PAIR),
        }
    return {metric: parts[metric] for metric in config.measures}


def evaluation_manifest(
    config: EvaluateConfig,
    why: str,
    run: Run,
    summary: dict[str, Any],
    rejected: int,
    stage_seconds: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The evaluation's account."""
    return {
        "run": run.identity.read_json(),
        "versions": versions(),
        "git_commit": git_commit(),
        "judge": {"engine": config.engine, "why": why} if config.judges else None,
        "pairs_of": config.processed_output or THE_RUN,
        "counts": {"papers": summary["papers"], "pairs": summary["pairs"], "rejected": rejected},
        "problems": summary["problems"],
        "pools": {"embed_actors": config.embed_actors, "judge_actors": config.judge_actors},
        "last_start": {"finished": utc_now(), "seconds": round(seconds, 2), "stages": stage_seconds},
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of the checkout that qaray runs from, None if it runs from none."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
