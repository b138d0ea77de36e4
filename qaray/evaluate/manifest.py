"""Identity and manifest of an evaluation."""

from __future__ import annotations

from typing import Any

from qaray.config import EvaluateConfig
from qaray.corpus.doi_index import Ingested
from qaray.evaluate.rubrics import INSTRUCTION, ONE_PAIR, RACAR_RUBRIC, SIMILARITY_RUBRIC, TWO_QUESTIONS
from qaray.models.planner import ModelPlan
from qaray.run.directory import THE_RUN, Run, utc_now
from qaray.run.manifests import git_commit, sha256, versions

# Version of what a metric means, raised when its scores cannot be compared with those of earlier releases. 2: sentences
# (coverage), numbers (grounding) and references to the paper (grounding, RACAR's rule) are found otherwise.
DEFINITIONS = {"coverage": 2, "grounding": 2, "similarity": 1, "racar": 2}


def evaluation_identity(config: EvaluateConfig, plan: ModelPlan | None) -> dict[str, dict[str, Any]]:
    """Metric → settings that must not change when an evaluation is resumed."""
    embedding = {
        "embedding_model": config.embedder,
        "query_instruction": config.metrics.query_instruction,
        "dtype": config.model.dtype,
    }
    parts: dict[str, dict[str, Any]] = {"coverage": embedding, "grounding": {}}
    if plan is not None:
        judging = {
            "engine": config.engine,
            "judge_model": config.model_name,
            "template_sha256": plan.template.sha256,
            "seq_len": plan.seq_len,
            "rope_factor": plan.rope_factor,
            "dtype": config.model.dtype,
        }
        parts["similarity"] = {
            **judging,
            **embedding,
            "judge_above": config.metrics.judge_above,
            "rubric_sha256": sha256(INSTRUCTION + "\0" + SIMILARITY_RUBRIC + TWO_QUESTIONS),
        }
        parts["racar"] = {
            **judging,
            "rubric_sha256": sha256(INSTRUCTION + "\0" + RACAR_RUBRIC + ONE_PAIR),
        }
    return {metric: {"definition": DEFINITIONS[metric], **parts[metric]} for metric in config.metrics.names}


def evaluation_manifest(
    config: EvaluateConfig,
    engine_reason: str,
    run: Run,
    summary: dict[str, Any],
    ingested: Ingested,
    stage_seconds: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The manifest of a finished evaluation."""
    return {
        "run": run.stored_identity(),
        "versions": versions(),
        "git_commit": git_commit(),
        "judge": {"engine": config.engine, "why": engine_reason} if config.judges else None,
        "pairs_of": config.pairs.processed_output or THE_RUN,
        "counts": {"papers": summary["papers"], "pairs": summary["pairs"], "rejected": ingested.rejected},
        "left_out": dict(ingested.left_out),
        "problems": summary["problems"],
        "pools": {"embed_actors": config.embedding.embed_actors, "judge_actors": config.judge_actors},
        "last_start": {"finished": utc_now(), "seconds": round(seconds, 2), "stages": stage_seconds},
    }
