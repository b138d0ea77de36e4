"""The ledger of a run: how its device time was spent, computed from the stored answers of all starts.

Each answer records its worker and the times of admission, first token and last token. A worker is busy during the union
of these spans; the rest of the time from its first admission to its last token is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qaray.models.shape import ModelShape

GAP = 0.05  # seconds; spans that are closer than this are merged


@dataclass
class Spans:
    """A union of time spans [begin, end], in seconds: disjoint and in order."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def add(self, others: Iterable[tuple[float, float]]) -> None:
        """Adds spans to the union, in place."""
        merged: list[tuple[float, float]] = []
        for begin, end in sorted([*self.spans, *others]):
            if merged and begin <= merged[-1][1] + GAP:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        self.spans = merged

    @property
    def seconds(self) -> float:
        """Total length."""
        return sum(end - begin for begin, end in self.spans)


@dataclass
class Ledger:
    """Sums over answers. Addable."""

    busy: dict[str, Spans] = field(default_factory=dict)  # worker → spans with an answer in progress
    prefill: dict[str, Spans] = field(default_factory=dict)  # worker → spans in which a prompt was processed
    decode: dict[str, Spans] = field(default_factory=dict)  # worker → spans in which an answer was generated
    prompt_tokens: int = 0
    output_tokens: int = 0
    attended_in_prefill: float = 0.0  # (query, key) token pairs covered by attention
    attended_in_decode: float = 0.0
    decode_seconds: float = 0.0  # summed over answers; exceeds the union if several are decoded together

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Ledger:
        """The ledger of rows of OUT/generations. Rows without times (failures) are skipped."""
        ledger = cls()
        spans: dict[str, list[tuple[float, float, float]]] = {}
        for row in rows:
            if row["reason"] is not None or not row.get("began"):
                continue
            begin, first = row["began"], row["began"] + (row.get("prefill_seconds") or 0.0)
            spans.setdefault(row["worker"] or "", []).append((begin, first, begin + row["seconds"]))
            prompt, output = row["prompt_tokens"], row["output_tokens"]
            ledger.output_tokens += output
            ledger.attended_in_decode += output * (prompt + output / 2)
            ledger.decode_seconds += row["seconds"] - (first - begin)
            if first > begin or row.get("attempt", 1) == 1:  # later attempts may find the prompt in the cache
                ledger.prompt_tokens += prompt
                ledger.attended_in_prefill += prompt * prompt / 2
        for worker, own in spans.items():
            for union, parts in (
                (ledger.busy, [(begin, end) for begin, _, end in own]),
                (ledger.prefill, [(begin, first) for begin, first, _ in own if first > begin]),
                (ledger.decode, [(first, end) for _, first, end in own]),
            ):
                union.setdefault(worker, Spans()).add(parts)
        return ledger

    def add(self, other: Ledger) -> None:
        for own, others in ((self.busy, other.busy), (self.prefill, other.prefill), (self.decode, other.decode)):
            for worker, spans in others.items():
                own.setdefault(worker, Spans()).add(spans.spans)
        for name in ("prompt_tokens", "output_tokens", "attended_in_prefill", "attended_in_decode", "decode_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def present_seconds(self) -> float:
        """Seconds from each worker's first admission to its last token, summed over workers."""
        return sum(own.spans[-1][1] - own.spans[0][0] for own in self.busy.values() if own.spans)

    def account(
        self,
        devices: float,
        loading: float,
        pairs: int,
        price: float | None,
        utilisation: dict[str, Any],
        token_cost: float | None = None,
    ) -> dict[str, Any]:
        """The ledger's entry in the manifest.

        ``devices``: GPUs per worker, or 1 for a CPU actor; ``loading``: seconds before a worker's first admission;
        ``price``: per device hour; ``utilisation``: result of ``utilisation()``; ``token_cost``: of an endpoint's
        tokens, which costs instead of device hours.
        """
        busy = sum(own.seconds for own in self.busy.values())
        prefill = sum(own.seconds for own in self.prefill.values())
        decode = sum(own.seconds for own in self.decode.values())
        device_seconds = devices * (self.present_seconds + loading * len(self.busy))
        cost = price * device_seconds / 3600 if price is not None and token_cost is None else token_cost
        return {
            "workers": len(self.busy),
            "devices_per_worker": devices,
            "device_seconds": round(device_seconds, 2),
            "loading_seconds_per_worker": round(loading, 2),
            "busy_seconds": round(busy * devices, 2),
            "busy_share": _ratio(busy, self.present_seconds),
            "prefill_seconds": round(prefill * devices, 2),
            "decode_seconds": round(decode * devices, 2),
            "prompt_tokens_per_device_second": _ratio(self.prompt_tokens, busy * devices),
            "output_tokens_per_device_second": _ratio(self.output_tokens, busy * devices),
            "prefill_tokens_per_second": _ratio(self.prompt_tokens, prefill * devices),
            "decode_tokens_per_second": _ratio(self.output_tokens, decode * devices),
            "written_together": _ratio(self.decode_seconds, decode),
            **utilisation,
            "cost": None if cost is None else round(cost, 4),
            "cost_per_1000_pairs": None if cost is None or not pairs else round(1000 * cost / pairs, 4),
        }

    def utilisation(
        self, shape: ModelShape | None, peaks: tuple[float, float] | None, devices: float
    ) -> dict[str, float | None]:
        """Estimated shares of a device's peak (FLOP/s, bytes/s) while it was busy; None if the peak is unknown.

        ``mfu``: 2 FLOPs per parameter and token, plus 4 · layers · width per (query, key) pair. ``mbu_decode``: each
        step reads the weights once and the keys and values of its sequences; steps are output tokens divided by the
        mean number of sequences decoded together.
        """
        busy = sum(own.seconds for own in self.busy.values())
        decode = sum(own.seconds for own in self.decode.values())
        if shape is None or peaks is None or not busy or not decode or not self.decode_seconds:
            return {"mfu": None, "mbu_decode": None}
        flops = 2.0 * shape.parameters * (self.prompt_tokens + self.output_tokens)
        flops += 4.0 * shape.layers * shape.width * (self.attended_in_prefill + self.attended_in_decode)
        steps = self.output_tokens * decode / self.decode_seconds
        read = steps * shape.weight_bytes + self.attended_in_decode * shape.kv_bytes
        return {
            "mfu": round(flops / (busy * devices * peaks[0]), 4),
            "mbu_decode": round(read / (decode * devices * peaks[1]), 4),
        }


def _ratio(numerator: float, denominator: float) -> float | None:
    return round(numerator / denominator, 4) if denominator else None
