"""Compares two evaluated runs: paired differences with confidence intervals."""

from __future__ import annotations

import math
from typing import Any

from qaray.corpus.doi import doi_key
from qaray.evaluate.summary import BOUNDS, PAPER_SCORES, figure, mean
from qaray.metrics.statistics import interval_of_mean
from qaray.run.directory import Run
from qaray.run.errors import Damaged, RunRefused


def compare(first: Run, second: Run) -> dict[str, Any]:
    """Paired differences second − first, by doi, with 95 % confidence intervals.

    Raises RunRefused if a run is not evaluated, or if the runs have no papers in common, Damaged if a file of theirs
    cannot be used.
    """
    before, after = _scores_by_doi(first), _scores_by_doi(second)
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise RunRefused(f"{first.evaluation.root} and {second.evaluation.root} have no papers in common")
    metrics = {}
    for name in BOUNDS:
        pairs = [(before[doi][name], after[doi][name]) for doi in shared]
        both = [(a, b) for a, b in pairs if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)]
        if not both:
            continue
        differences = [b - a for a, b in both]
        interval = interval_of_mean(differences)
        metrics[name] = {
            "first": mean([a for a, _ in both]),
            "second": mean([b for _, b in both]),
            "difference": mean(differences),
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "papers": len(both),
            "missing": len(pairs) - len(both),
        }
    return {
        "first": str(first.evaluation.root), "second": str(second.evaluation.root), "papers": len(shared),
        "only_in_first": len(before) - len(shared), "only_in_second": len(after) - len(shared), "metrics": metrics,
    }  # fmt: skip


def _scores_by_doi(run: Run) -> dict[str, dict[str, Any]]:
    if not run.root.exists():
        raise RunRefused(f"{run.root} is not an evaluated run: pass the --output_dir of evaluate")
    again = f"run `qaray evaluate --output_dir {run.root}`"
    if run.evaluation.read_manifest() is None:
        raise RunRefused(f"{run.root} has no finished evaluation: {again} first")
    scores, folder = {}, PAPER_SCORES.folder(run.evaluation)
    for row in PAPER_SCORES.rows(run.evaluation):
        lacking = [name for name in ("doi", *BOUNDS) if name not in row]
        if lacking:
            raise Damaged(folder, f"has a file without the column {lacking[0]}", again)
        if not isinstance(row["doi"], str) or any(isinstance(row[name], str | list | dict) for name in BOUNDS):
            raise Damaged(folder, "has a file whose scores are not numbers", again)
        scores[doi_key(row["doi"])] = row
    if not scores:
        raise Damaged(folder, "is missing or empty", again)
    return scores


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """Lines of the comparison table for the terminal."""
    lines = [
        f"{found['papers']} papers in both; {found['only_in_first']} only in A, {found['only_in_second']} only in B"
    ]
    lines.append(f"{'metric':24}{'A':>9}{'B':>9}{'B − A':>9}   95 % interval     papers  missing")
    for name, row in found["metrics"].items():
        figures = "".join(map(figure, (row["first"], row["second"], row["difference"])))
        interval = f"{figure(row['low'])} …{figure(row['high'])}"
        lines.append(f"{name:24}{figures}   {interval}{row['papers']:>9}{row['missing']:>9}")
    return lines
