"""The summary of an evaluation: means with confidence intervals, histograms, controls."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from qaray.evaluate.measure import Context, papers_owed
from qaray.evaluate.tables import COVERAGE, GROUNDING, QUESTIONS, RACAR, SIMILARITY, Table
from qaray.metrics import similarity
from qaray.metrics.statistics import histogram, interval_of_mean
from qaray.run.cluster import in_order
from qaray.schema import DIMENSIONS, ScoreKey, arrow_schema

# Metric → bounds of its histogram, None if it is unbounded.
BOUNDS: dict[str, tuple[float, float] | None] = {
    "coverage_overall": (0, 1),
    "coverage_individual": (0, 1),
    "coverage_null": (0, 1),
    "coverage_lift": (-1, 1),
    "sentence_std": None,
    "similarity_judge": (0, 1),
    "similarity_cosine": (-1, 1),
    "similarity_flagged": (0, 1),
    **{f"racar_{name}": (1, 5) for name in DIMENSIONS},
    "racar_passes": (0, 1),
    "numbers_found": (0, 1),
    "swap_rate": (0, 1),
    "self_contained": (0, 1),
    "answer_words": None,
    "evidence_overlap": (0, 1),
}  # fmt: skip
BY_TABLE = {
    COVERAGE.name: ("coverage_overall", "coverage_individual", "coverage_null", "coverage_lift", "sentence_std"),
    SIMILARITY.name: ("similarity_judge", "similarity_cosine", "similarity_flagged"),
    RACAR.name: (*(f"racar_{name}" for name in DIMENSIONS), "racar_passes"),
    GROUNDING.name: ("numbers_found", "swap_rate", "self_contained", "answer_words", "evidence_overlap"),
}
PAPER_SCORES = Table(
    "paper_scores",
    pa.schema([*arrow_schema(ScoreKey), ("pairs", pa.int32()), *((name, pa.float64()) for name in BOUNDS)]),
)
CHANCE = 0.65  # a control AUC below it is reported as near chance


@dataclass
class Tally:
    """Sums over papers and pairs, in addition to the scores per paper."""

    problems: Counter[str] = field(default_factory=Counter)  # "table: reason" → rows
    question_pairs: int = 0
    sampled_papers: int = 0  # papers with more question pairs than are compared
    question_pairs_left_out: int = 0  # of these papers
    judged: int = 0  # question pairs judged in both orders
    flagged: int = 0
    pairs: int = 0
    passing: int = 0
    numbers: int = 0
    numbers_found: int = 0
    swapped: int = 0  # numbers of other papers' answers, tested on a paper
    swapped_found: int = 0
    judge_and_cosine: list[tuple[float, float]] = field(default_factory=list)
    order_gaps: list[float] = field(default_factory=list)  # |judge − judge_swapped|
    control: dict[str, list[float]] = field(default_factory=dict)  # similarity, by kind
    own_answers: dict[str, list[float]] = field(default_factory=dict)  # RACAR, by dimension, of control pairs
    swapped_answers: dict[str, list[float]] = field(default_factory=dict)

    MAX_QUESTIONS = 100_000  # maximum values kept per list

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Counter):
                mine.update(value)
            elif isinstance(value, dict):
                for key, values in value.items():
                    _extend(mine.setdefault(key, []), values)
            elif isinstance(value, list):
                _extend(mine, value)
            else:
                setattr(self, name, mine + value)


def _extend(kept: list[Any], more: list[Any]) -> None:
    kept.extend(more[: Tally.MAX_QUESTIONS - len(kept)])


def measured_tables(context: Context) -> tuple[Table, ...]:
    """The tables with rows for every paper, including those measured by earlier starts."""
    identity = context.run.stored_identity() or {}
    candidates = [each for each in (COVERAGE, SIMILARITY, RACAR, GROUNDING) if each.name in identity]
    return tuple(each for each in candidates if not papers_owed(context, (each,)))


def summarise(context: Context, duplicates: dict[str, Any] | None) -> dict[str, Any]:
    """Merges the tables of every shard, writes paper_scores.parquet and summary.json, and returns the summary."""
    tables = measured_tables(context)
    shards = context.source.shards()
    for each in (COVERAGE, QUESTIONS, SIMILARITY, RACAR, GROUNDING, PAPER_SCORES):
        each.keep_only(context.run, set(shards))
    samples = {name: Sample() for each in tables for name in BY_TABLE[each.name]}
    tally, papers = Tally(), 0
    for own, scores in in_order(_merge_shard, context, ((tables, shard) for shard in shards), ahead=9):
        tally.add(own)
        papers += len(scores)
        for name, sample in samples.items():
            sample.add([row[name] for row in scores])
    summary: dict[str, Any] = {
        "papers": papers,
        "pairs": tally.pairs,
        "metrics": {name: sample.describe(BOUNDS[name]) for name, sample in samples.items()},
        "problems": dict(tally.problems),
    }
    if SIMILARITY in tables:
        judge_above = (context.run.stored_identity() or {})["similarity"]["judge_above"]
        summary["similarity"] = _similarity(tally, judge_above)
    if RACAR in tables:
        summary["racar"] = _racar(tally)
    if GROUNDING in tables:
        summary["grounding"] = {
            "numbers": tally.numbers,
            "numbers_found": tally.numbers_found,
            "swapped": tally.swapped,
            "swapped_found": tally.swapped_found,
            "swap_rate": tally.swapped_found / tally.swapped if tally.swapped else None,
        }
    if duplicates is not None:
        summary["near_duplicates"] = duplicates
    context.run.summary.write_json(summary)
    return summary


def _merge_shard(context: Context, tables: tuple[Table, ...], shard: str) -> tuple[Tally, list[dict[str, Any]]]:
    """Merges a shard into one file per table; returns its sums, and one row of scores per paper."""
    keys = context.source.keys(shard)
    tally = Tally(pairs=sum(key.pairs for key in keys))
    papers: list[dict[str, Any]] = [{"doi": key.doi, "digest": key.digest, "pairs": key.pairs} for key in keys]
    add = {
        COVERAGE.name: _add_coverage,
        SIMILARITY.name: _add_similarity,
        RACAR.name: _add_racar,
        GROUNDING.name: _add_grounding,
    }
    for each in tables:
        for paper, rows in zip(papers, each.merge(context.run, shard, keys), strict=True):
            paper.update(dict.fromkeys(BY_TABLE[each.name]))
            paper.update(add[each.name](rows, tally))
            tally.problems.update(f"{each.name}: {row['reason']}" for row in rows if row["reason"])
    if SIMILARITY in tables:
        QUESTIONS.merge(context.run, shard, keys)
    PAPER_SCORES.replace(context.run, shard, papers)
    return tally, papers


def _add_coverage(rows: list[Any], tally: Tally) -> dict[str, Any]:
    row = rows[0]
    scores = {f"coverage_{name}": row[name] for name in ("overall", "individual", "null", "lift")}
    return {**scores, "sentence_std": mean(row["sentence_std"] or [])}


def _add_similarity(rows: list[Any], tally: Tally) -> dict[str, Any]:
    row = rows[0]
    scores = []
    for pair in row["pairs"]:
        score = similarity.both_orders(pair["judge"], pair["judge_swapped"])
        if score is not None:
            scores.append(score)
            if pair["cosine"] is not None:
                _extend(tally.judge_and_cosine, [(score, pair["cosine"])])
            _extend(tally.order_gaps, [abs(pair["judge"] - pair["judge_swapped"])])
    flagged = sum(score > similarity.FLAGGED for score in scores)
    tally.question_pairs += len(row["pairs"])
    left_out = math.comb(len(row["pair_ids"]), 2) - len(row["pairs"])
    if left_out:
        tally.sampled_papers += 1
        tally.question_pairs_left_out += left_out
    tally.judged += len(scores)
    tally.flagged += flagged
    for each in row["control"]:
        _extend(tally.control.setdefault(each["kind"], []), [each["score"]])
    return {
        "similarity_judge": mean(scores),
        "similarity_cosine": mean([pair["cosine"] for pair in row["pairs"] if pair["cosine"] is not None]),
        "similarity_flagged": flagged / len(scores) if scores else None,
    }


def _add_racar(rows: list[Any], tally: Tally) -> dict[str, Any]:
    for row in rows:
        if row["swapped"] is not None and row["accuracy"] is not None:  # a pair may be too long, but not its swap
            for name in DIMENSIONS:
                _extend(tally.own_answers.setdefault(name, []), [row[name]])
                _extend(tally.swapped_answers.setdefault(name, []), [row["swapped"][name]])
    tally.passing += sum(bool(row["passes"]) for row in rows)
    grades = {f"racar_{name}": mean([row[name] for row in rows if row[name] is not None]) for name in DIMENSIONS}
    return {**grades, "racar_passes": mean([row["passes"] for row in rows if row["passes"] is not None])}


def _add_grounding(rows: list[Any], tally: Tally) -> dict[str, Any]:
    numbers, found = sum(row["numbers"] for row in rows), sum(row["numbers_found"] for row in rows)
    tally.numbers += numbers
    tally.numbers_found += found
    swapped, swapped_found = (rows[0]["swapped"], rows[0]["swapped_found"]) if rows else (None, None)
    tally.swapped += swapped or 0
    tally.swapped_found += swapped_found or 0
    return {
        "numbers_found": found / numbers if numbers else None,
        "swap_rate": swapped_found / swapped if swapped else None,
        "self_contained": mean([row["self_contained"] for row in rows if row["self_contained"] is not None]),
        "answer_words": mean([row["answer_words"] for row in rows if row["answer_words"] is not None]),
        "evidence_overlap": mean([row["overlap"] for row in rows if row["overlap"] is not None]),
    }


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


class Sample:
    """The papers' values of one metric. Missing values are counted, but not part of the mean."""

    def __init__(self) -> None:
        self.values = array("d")  # 80 MB for ten million papers
        self.missing = 0

    def add(self, values: Sequence[float | None]) -> None:
        present = [value for value in values if value is not None and np.isfinite(value)]
        self.missing += len(values) - len(present)
        self.values.extend(present)

    def describe(self, bounds: tuple[float, float] | None) -> dict[str, Any]:
        interval = interval_of_mean(self.values)
        return {
            "mean": mean(self.values),
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "interval": interval.kind if interval else None,
            "papers": len(self.values),
            "missing": self.missing,
            "histogram": histogram(self.values, bounds),
        }


def _similarity(tally: Tally, judge_above: float) -> dict[str, Any]:
    control = tally.control
    sampled = {"papers": tally.sampled_papers, "question_pairs_left_out": tally.question_pairs_left_out}
    unrelated = control.get("unrelated", [])
    same = [*control.get("duplicate", []), *control.get("paraphrase", [])]
    return {
        "question_pairs": tally.question_pairs,
        **({"sampled": sampled} if tally.sampled_papers else {}),
        "judged": tally.judged,
        "judge_above": judge_above,
        "flagged_share": tally.flagged / tally.judged if tally.judged else None,
        "judge_cosine_spearman": similarity.agreement(
            [judge for judge, _ in tally.judge_and_cosine], [cosine for _, cosine in tally.judge_and_cosine]
        ),
        "mean_gap_of_orders": mean(tally.order_gaps),
        "control": {
            **_control(
                "the same question twice and in other words, against questions of other papers", same, unrelated
            ),
            "auc_duplicates": similarity.auc(control.get("duplicate", []), unrelated),
            "auc_paraphrases": similarity.auc(control.get("paraphrase", []), unrelated),
        },
    }


def _racar(tally: Tally) -> dict[str, Any]:
    by_dimension = {
        name: similarity.auc(tally.own_answers.get(name, []), tally.swapped_answers.get(name, []))
        for name in DIMENSIONS
    }
    own, swapped = _judged_means(tally.own_answers), _judged_means(tally.swapped_answers)
    return {
        "passing": tally.passing,
        "passing_share": tally.passing / tally.pairs if tally.pairs else None,
        "control": {
            **_control(
                "pairs with their own answer, against the same questions with answers of other papers", own, swapped
            ),
            "auc_by_dimension": by_dimension,
        },
    }


def _control(what: str, positives: Sequence[float], negatives: Sequence[float]) -> dict[str, Any]:
    """How well the judge separates positives from negatives."""
    found = similarity.auc(positives, negatives)
    return {
        "what": what,
        "auc": found,
        "near_chance": found is not None and found < CHANCE,
        "positives": len(positives),
        "negatives": len(negatives),
    }


def _judged_means(scores: dict[str, list[float]]) -> list[float]:
    """Mean grade of each pair over all dimensions except agnosticism, which the answer does not affect."""
    names = [name for name in DIMENSIONS if name != "agnosticism" and name in scores]
    return [float(np.mean(values)) for values in zip(*(scores[name] for name in names), strict=True)] if names else []


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Lines of the summary table for the terminal."""
    lines = [f"{'metric':24}{'mean':>9}   95 % interval     papers  missing"]
    for name, found in summary["metrics"].items():
        lines.append(
            f"{name:24}{figure(found['mean'])}   {figure(found['low'])} …{figure(found['high'])}"
            f"{found['papers']:>9}{found['missing']:>9}"
        )
    if sampled := summary.get("similarity", {}).get("sampled"):
        lines.append(sample_note(sampled))
    for name in ("similarity", "racar"):
        control = summary.get(name, {}).get("control", {})
        if control.get("auc") is not None:
            verdict = "near chance: do not rely on its scores" if control["near_chance"] else "better than chance"
            lines.append(f"judge of {name}: AUC {control['auc']:.3f} on {control['what']} ({verdict})")
    return lines


def sample_note(sampled: dict[str, int]) -> str:
    """One line on the papers whose questions are not all compared."""
    return (
        f"similarity: {sampled['papers']:,} papers have more than {similarity.MAX_QUESTION_PAIRS:,} question pairs; so "
        f"many, drawn at random, are compared of each, and {sampled['question_pairs_left_out']:,} are not"
    )


def figure(value: float | None) -> str:
    return f"{'–':>9}" if value is None else f"{value:9.3f}"
