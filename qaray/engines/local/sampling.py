"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

SHORTLIST = 512  # tokens sorted first: their mass nearly always exceeds top_p


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float
    top_p: float
    seed: int
    min_tokens: int = 0  # before so many tokens nothing ends an answer


class RandomStream:
    """Uniform numbers of one request: the same whatever shares its batch."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Generator(np.random.Philox(seed))

    def next(self) -> float:
        return float(self._bits.random())


def sample(logits: torch.Tensor, uniforms: Sequence[float], temperature: float, top_p: float) -> list[int]:
    """One token for each row of ``logits`` [B, V] by nucleus sampling; ``uniforms`` [B] in [0, 1) decide.

    Temperature 0 takes the likeliest. The nucleus is the smallest set of likeliest tokens whose mass reaches ``top_p``.
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
    mass = mass.masked_fill(reached - mass >= top_p, 0.0)  # all after the token that reaches top_p
    cumulative = mass.cumsum(dim=-1)
    drawn = torch.tensor(list(uniforms), dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, drawn, right=True).clamp_(max=size - 1)
    return ids.gather(1, choice)[:, 0].tolist()
