"""The report of a fine-tuning: loss curve and key figures on one static page."""

from __future__ import annotations

from typing import Any

from qaray.report import figures
from qaray.report.pages import Pages, figure
from qaray.report.records import TrainingLog, TrainingManifest, checked, read_checked
from qaray.run.directory import Run, logged_steps

FIGURES = (
    ("loss_first", "loss at the first step"),
    ("loss_last", "loss at the last step"),
    ("steps", "optimizer steps"),
    ("workers", "training processes"),
)


def write_training_report(run: Run) -> str:
    """Writes OUT/report/index.html; returns its path.

    Raises RunRefused unless the fine-tuning is finished, Damaged if one of its files cannot be used.
    """
    cure = "rerun `qaray fine-tune`"
    manifest = checked(run.manifest, run.finished(), TrainingManifest, cure)
    log = read_checked(run.training_log, TrainingLog, cure) if run.training_log.exists() else {"log": []}
    steps = logged_steps(log)
    evaluations = [entry for entry in log["log"] if "eval_loss" in entry]
    shown = [figures.training_curve(steps, evaluations)] if steps else []
    if steps:
        shown.append(figures.training_rate(steps))
    index = run.root / "report" / "index.html"
    Pages().write(
        index, "training.html", "table.js",
        manifest=manifest, figures=shown, rows=list(_rows(manifest, steps)), examples=manifest["examples"],
    )  # fmt: skip
    return index.path


def _rows(manifest: dict[str, Any], steps: list[dict[str, Any]]) -> Any:
    for name, title in FIGURES:
        yield title, figure(manifest[name])
    for name, value in (manifest["evaluation"] or {}).items():
        yield f"held-out examples: {name.replace('_', ' ')}", figure(value)
    if steps:
        rates = sorted(entry["tokens_per_second"] for entry in steps)
        yield "tokens per second, median", figure(rates[len(rates) // 2])
        yield "peak memory per process, GiB", figure(max(entry["memory_gib"] for entry in steps))
        if shares := [entry["mfu"] for entry in steps if "mfu" in entry]:
            yield "MFU, median", figure(sorted(shares)[len(shares) // 2])
