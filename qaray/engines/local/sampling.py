"""Samples the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

NOT_FINITE = "its logits are not finite"
SHORTLIST = 512  # most likely tokens, sorted first: their mass nearly always exceeds top_p


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters."""

    temperature: float
    top_p: float
    seed: int
    min_tokens: int = 0  # EOS and early stopping are disabled before this many tokens


class RandomStream:
    """Uniform random numbers of one request, independent of the other requests in its batch."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Generator(np.random.Philox(seed))

    def next(self) -> float:
        return float(self._bits.random())


def not_finite(logits: torch.Tensor) -> torch.Tensor:
    """Which rows of ``logits`` [B, V] no token can be chosen from, bool [B]: NaN, +∞, or all −∞."""
    return ~torch.isfinite(logits.amax(dim=-1))  # the maximum of a row with NaN is NaN


def sample(logits: torch.Tensor, uniforms: Sequence[float], temperature: float, top_p: float) -> list[int]:
    """Nucleus sampling: one token id per row of ``logits`` [B, V], chosen by ``uniforms`` [B] in [0, 1).

    Temperature 0 is greedy. The nucleus is the smallest set of most likely tokens whose mass reaches ``top_p``.
    """
    if temperature == 0:
        return logits.argmax(dim=-1).tolist()
    scaled = logits.float() / temperature
    total = torch.logsumexp(scaled, dim=-1, keepdim=True)
    size = min(SHORTLIST, scaled.shape[-1])
    while True:
        values, ids = torch.topk(scaled, size, dim=-1)
        mass = torch.exp(values - total).double()
        reached = mass.cumsum(dim=-1)
        if size == scaled.shape[-1] or bool((reached[:, -1] >= top_p).all()):
            break
        size = scaled.shape[-1]
    mass = mass.masked_fill(reached - mass >= top_p, 0.0)  # tokens after the one that reaches top_p
    cumulative = mass.cumsum(dim=-1)
    drawn = torch.tensor(list(uniforms), dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, drawn, right=True).clamp_(max=size - 1)
    return ids.gather(1, choice)[:, 0].tolist()
