"""Estimates the hours, cost and disk space of a corpus from a finished run."""

from __future__ import annotations

from typing import Any

from qaray.config import ConfigError, PlanConfig
from qaray.run.directory import Run


def plan_corpus(config: PlanConfig) -> dict[str, Any]:
    """Scales a finished run to ``papers``, and to the papers' length if ``paper_tokens`` is given.

    Assumes the run's throughput: similar papers, the same device, the same settings. Loading the model is counted once
    per device. Raises RunRefused unless the run is finished, ConfigError if it has no timings.
    """
    manifest = Run.at(config.output_dir).finished()
    ledger, counts, tokens = manifest["ledger"], manifest["counts"], manifest["tokens"]
    if not ledger["workers"]:
        raise ConfigError(f"{config.output_dir} has no timings: it was written by an earlier release")
    devices, papers = ledger["devices_per_worker"], counts["papers"]
    loading = ledger["loading_seconds_per_worker"]
    own_tokens = tokens["papers"] / papers
    length_ratio = (config.paper_tokens or own_tokens) / own_tokens
    # Prefill time grows with the paper's length, decode time does not.
    prefill_share = ledger["prefill_seconds"] / max(1e-9, ledger["prefill_seconds"] + ledger["decode_seconds"])
    working = ledger["device_seconds"] - devices * loading * ledger["workers"]
    each = working / papers * (prefill_share * length_ratio + 1 - prefill_share)
    seconds = each * config.papers + loading * config.gpus
    pairs = round(counts["pairs"] / papers * config.papers)
    cost = _cost_of_tokens(config, manifest, length_ratio)
    price = config.gpu_hour_price or _price(ledger)
    if cost is None and price is not None:
        cost = price * seconds / 3600
    return {
        "papers": config.papers,
        "devices": config.gpus,
        "device": manifest["engine"]["device"] or manifest["engine"]["name"],
        "hours": seconds / config.gpus / 3600,
        "device_hours": seconds / 3600,
        "cost": cost,
        "pairs": pairs,
        "cost_per_1000_pairs": None if cost is None or not pairs else 1000 * cost / pairs,
        "gigabytes": manifest["bytes"] / papers * config.papers * length_ratio / 1e9,
        "from": {
            "papers": papers,
            "tokens_per_paper": own_tokens,
            "device_seconds_per_paper": working / papers,
            "busy_share": ledger["busy_share"],
        },
    }


def _cost_of_tokens(config: PlanConfig, manifest: dict[str, Any], length_ratio: float) -> float | None:
    """What the endpoint's tokens cost, None without prices. Prompts grow with the papers' length, outputs do not."""
    prices = manifest.get("prices") or {}
    given = (config.input_price, prices.get("input")), (config.output_price, prices.get("output"))
    per_input, per_output = (own if own is not None else default for own, default in given)
    if per_input is None or per_output is None:
        return None
    tokens, scale = manifest["tokens"], config.papers / manifest["counts"]["papers"]
    return float(scale * (tokens["prompts"] * length_ratio * per_input + tokens["outputs"] * per_output) / 1e6)


def _price(ledger: dict[str, Any]) -> float | None:
    """Price per device hour that the run was given, None without one."""
    return None if ledger["cost"] is None else ledger["cost"] / ledger["device_seconds"] * 3600


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan as lines of text."""
    base = plan["from"]
    lines = [
        f"{plan['papers']:,} papers on {plan['devices']:,} × {plan['device']}: {plan['hours']:,.1f} hours, "
        f"{plan['device_hours']:,.1f} device hours",
        f"about {plan['pairs']:,} pairs and {plan['gigabytes']:,.1f} GB in the run directory",
    ]
    if plan["cost"] is not None:
        each = plan["cost_per_1000_pairs"]
        per_pair = "" if each is None else f", {each:,.2f} per 1,000 pairs"
        lines.append(f"cost {plan['cost']:,.2f}{per_pair}")
    busy = base["busy_share"]
    lines.append(
        f"from a run of {base['papers']:,} papers of {base['tokens_per_paper']:,.0f} tokens: "
        f"{base['device_seconds_per_paper']:,.3f} device seconds per paper, devices busy {busy or 0:.0%} of the time"
    )
    return lines
