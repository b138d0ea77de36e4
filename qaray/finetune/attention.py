"""S²-Attn, the shifted sparse attention of LongLoRA (arXiv 2309.12307), for training.

The sequence is split into groups. The first half of the heads attends within groups; the other half within groups that
are shifted by half a group, so that information reaches the next group one layer later. The shifted groups do not wrap
around: the first one is half as long, and the start of a sequence never attends to its end. In evaluation and with a KV
cache, attention is full. Shapes: B sequences, H query heads, K key-value heads, S tokens, D head dimension.

transformers calls ``s2_attention`` through its attention interface and ``keep_padding`` through its mask interface.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "qaray_s2"
MAX_GROUP = 8192  # tokens; group size if the length is not a multiple of 4096


def group_size(length: int, wanted: int | None = None) -> int:
    """Group size in tokens: ``wanted`` if given, else by LongLoRA's rule for fine-tuning."""
    if wanted:
        return wanted
    return length // 4 if length % 4096 == 0 else MAX_GROUP


def register(wanted: int | None = None, flash: bool = True) -> str:
    """Registers S²-Attn with transformers; returns the ``attn_implementation`` to load a model with.

    ``wanted``: group size in tokens, None for LongLoRA's rule; ``flash``: use flash-attn if it is available.
    """

    AttentionInterface.register(ATTENTION, functools.partial(s2_attention, group=wanted, flash=flash))
    AttentionMaskInterface.register(ATTENTION, keep_padding)
    return ATTENTION


def keep_padding(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """Mask of tokens that are not padding, bool [B, S]; None if the causal mask alone hides the padding.

    This is so for right padding: no real token attends to it. An S × S mask is never built for it.
    """
    if attention_mask is None:
        return None
    keep = attention_mask.bool()
    at_end = (keep.long().cumsum(dim=1) == torch.arange(1, keep.shape[1] + 1, device=keep.device)) | ~keep
    return None if bool(at_end.all()) else keep


def s2_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    group: int | None = None,
    flash: bool = True,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer: query [B, H, S, D], key and value [B, K, S, D] → ([B, S, H, D], no weights).

    ``attention_mask``: result of ``keep_padding``. ``group``: group size in tokens, None for LongLoRA's rule.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    length = query.shape[2]
    if not module.training or key.shape[2] != length:
        return _full(query, key, value, attention_mask, scaling).transpose(1, 2), None
    size = group_size(length, group)
    if size >= length and size // 2 >= length:
        return _full(query, key, value, attention_mask, scaling, dropout).transpose(1, 2), None
    half = query.shape[1] // 2
    parts = []
    for heads, first in ((slice(0, half), size), (slice(half, None), size // 2)):
        own = query[:, heads]
        kv_heads = _kv_heads(heads, query.shape[1], key.shape[1], key.device)
        parts.append(
            _grouped(own, key[:, kv_heads], value[:, kv_heads], attention_mask, first, size, scaling, dropout, flash)
        )
    return torch.cat(parts, dim=1).transpose(1, 2), None


def _kv_heads(heads: slice, query_heads: int, kv_heads: int, device: torch.device) -> Any:
    """The key-value heads of a range of query heads: a slice if shared evenly, else one index per query head."""
    owners = [head // (query_heads // kv_heads) for head in range(query_heads)[heads]]
    distinct = sorted(set(owners))
    shared = len(owners) // max(1, len(distinct))
    if owners == [kv for kv in distinct for _ in range(shared)]:
        return slice(distinct[0], distinct[-1] + 1) if distinct else slice(0, 0)
    return torch.tensor(owners, device=device)


def borders(length: int, first: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of each group: the first has ``first`` tokens, the others ``size``; the last may be shorter."""
    stops = [*range(min(first, length), length, size), length]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    first: int,
    size: int,
    scaling: float,
    dropout: float,
    flash: bool,
) -> torch.Tensor:
    """Causal attention within groups: [B, h, S, D]."""
    if flash and keep is None and _flash_attn(query) is not None:
        return _varlen(query, key, value, first, size, scaling, dropout)
    done = [
        _batched(query, key, value, keep, run, count, scaling, dropout)
        for run, count in _runs(borders(query.shape[2], first, size))
    ]
    return torch.cat(done, dim=2)


def _runs(groups: list[tuple[int, int]]) -> Iterator[tuple[slice, int]]:
    """Runs of consecutive groups of equal length, as (their tokens, number of groups)."""
    begin = 0
    for i in range(1, len(groups) + 1):
        same = i < len(groups) and groups[i][1] - groups[i][0] == groups[begin][1] - groups[begin][0]
        if not same:
            yield slice(groups[begin][0], groups[i - 1][1]), i - begin
            begin = i


def _batched(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    run: slice,
    count: int,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Attention within ``count`` groups of equal length g, computed as one batch: [B, h, count·g, D]."""

    def split(tensor: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = tensor.shape
        cut = tensor[:, :, run].reshape(batch, heads, count, -1, dim)
        return cut.transpose(1, 2).reshape(batch * count, heads, -1, dim)

    own = None if keep is None else keep[:, run].reshape(keep.shape[0] * count, -1)
    out = _full(split(query), split(key), split(value), own, scaling, dropout)
    batch, heads, dim = query.shape[0], query.shape[1], query.shape[3]
    return out.reshape(batch, count, heads, -1, dim).transpose(1, 2).reshape(batch, heads, -1, dim)


def _full(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention of the last q of S positions: [B, H, q, D]."""
    new, seen = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type == "cpu":  # the fused CPU kernel has no backward pass for shared heads
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        grouped = False
    if keep is None and new in (1, seen):
        causal = new == seen and new > 1
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    places = torch.arange(seen, device=query.device)
    mask = places[None, :] <= places[seen - new :, None]
    if keep is not None:
        # A padding token attends to itself: a row without keys would be NaN.
        own = places[None, :] == places[seen - new :, None]
        mask = (mask[None] & keep[:, None, :seen]) | own[None]
        mask = mask[:, None]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
    )


def has_flash_attn() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def _flash_attn(query: torch.Tensor) -> Any:
    """The flash_attn module if it supports this tensor, else None."""
    if query.device.type != "cuda" or query.dtype == torch.float32 or not has_flash_attn():
        return None
    import flash_attn

    return flash_attn


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first: int,
    size: int,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Grouped attention in one call of flash-attn, with groups as sequences of a packed batch: [B, h, S, D]."""
    batch, heads, length, dim = query.shape
    groups = borders(length, first, size)
    starts = [row * length + start for row in range(batch) for start, _ in groups] + [batch * length]
    offsets = torch.tensor(starts, dtype=torch.int32, device=query.device)
    longest = max(stop - start for start, stop in groups)
    packed = (t.transpose(1, 2).reshape(batch * length, t.shape[1], dim) for t in (query, key, value))
    out = _flash_attn(query).flash_attn_varlen_func(
        *packed, offsets, offsets, longest, longest, dropout_p=dropout, softmax_scale=scaling, causal=True
    )
    return out.view(batch, length, heads, dim).transpose(1, 2)
