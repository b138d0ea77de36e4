"""A key-value cache of fixed slots, and the attention that reads it.

Each sequence owns a slot and starts at its first position: there is no left padding, positions are the sequence's own,
and a slot that becomes free takes the next prompt while the others continue. Letters: B slots, H query heads, K
key-value heads, G = H / K query heads that share a key-value head, T new tokens, S tokens in the cache, D head
dimension.

transformers calls ``slot_attention`` through its attention interface. Since no mask function is registered under the
same name, the model builds no mask; the step determines which positions are visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, Cache

ATTENTION = "qaray_slots"
QUERY_BLOCK = 256  # queries per prefill block on the CPU


@dataclass
class Step:
    """One call of the model.

    Prefill: ``slot`` is set; T tokens are written at positions ``start`` … ``start + T − 1`` of that slot. If ``ends``
    is set, they are a tree in depth-first order instead of a sequence: the descendants of token t are
    t + 1 … ends[t] − 1, and a token attends only to its ancestors in the tree.
    Decode: ``lengths`` [B] is set; one token per slot, written at position ``lengths[b]``.
    """

    slot: int = -1
    start: int = 0
    ends: torch.Tensor | None = None  # int64 [T]
    depths: torch.Tensor | None = None  # int64 [T], depths in the tree; 0 at ``start``
    lengths: torch.Tensor | None = None  # int64 [B], tokens in the cache before this step
    longest: int = 0  # positions that decoding reads: more than max(lengths)
    flash: Any = None  # the flash_attn module; None if it is not used
    _bias: torch.Tensor | None = None

    def bias(self, like: torch.Tensor) -> torch.Tensor:
        """Additive mask of decoding, [B, 1, 1, S]: −∞ beyond each slot's length. Computed once per step."""
        if self._bias is None:
            assert self.lengths is not None
            places = torch.arange(self.longest, device=like.device)
            hidden = places[None, :] > self.lengths[:, None]
            self._bias = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
                hidden, float("-inf")
            )[:, None, None, :]
        return self._bias


class SlotCache(Cache):
    """Keys and values of all layers, [B, K, capacity, D] each.

    Each layer has one block of ``budget_tokens``, which ``shape`` divides into slots. The capacity grows with the
    longest sequence (``grow``), so that decoding reads dense tensors: CPU kernels copy strided batches.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, budget_tokens: int, dtype: Any, device: Any) -> None:
        # Cache.__init__ is not called: a model that needs transformers' own cache layers fails with an error.
        self.kv_heads, self.head_dim, self.budget_tokens = kv_heads, head_dim, budget_tokens
        size = 2 * budget_tokens * kv_heads * head_dim
        # Masked positions are multiplied as well, so the memory must never contain NaN.
        self._blocks = [_zeros(size, dtype, torch.device(device)).view(2, -1) for _ in range(layers)]
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.slots = self.capacity = 0
        self.step = Step()

    def shape(self, slots: int, capacity: int) -> None:
        """Divides the memory into ``slots`` of ``capacity`` positions. Discards the contents."""
        used = slots * capacity * self.kv_heads * self.head_dim
        assert slots * capacity <= self.budget_tokens, "more slots than the budget holds"
        view = (slots, self.kv_heads, capacity, self.head_dim)
        self.keys = [block[0, :used].view(view) for block in self._blocks]
        self.values = [block[1, :used].view(view) for block in self._blocks]
        self.slots, self.capacity = slots, capacity

    def grow(self, capacity: int, in_use: int) -> None:
        """Increases the slots to ``capacity`` positions; the first ``in_use`` slots keep their contents.

        The memory is reused: every head's positions move towards the end, the last first, so that nothing is
        overwritten before it has moved.
        """
        old_keys, old_values, held = self.keys, self.values, self.capacity
        self.shape(self.slots, capacity)
        for old, new in zip((*old_keys, *old_values), (*self.keys, *self.values), strict=True):
            for slot in reversed(range(in_use)):
                for head in reversed(range(self.kv_heads)):
                    new[slot, head, :held] = old[slot, head].clone()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the step's keys and values; returns the visible ones: [1, K, S, D] in prefill, else [B, K, S, D]."""
        keys, values, step = self.keys[layer_idx], self.values[layer_idx], self.step
        if step.lengths is None:
            place = slice(step.start, step.start + key_states.shape[2])
            keys[step.slot, :, place] = key_states[0]
            values[step.slot, :, place] = value_states[0]
            seen = slice(0, place.stop)
            return keys[step.slot : step.slot + 1, :, seen], values[step.slot : step.slot + 1, :, seen]
        rows = torch.arange(len(step.lengths), device=keys.device)
        keys[rows, :, step.lengths] = key_states[:, :, 0]
        values[rows, :, step.lengths] = value_states[:, :, 0]
        return keys[: len(rows), :, : step.longest], values[: len(rows), :, : step.longest]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.step.start

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of a slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


def _zeros(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros [size]. On CPUs NumPy allocates pages on first use, since a run rarely needs the whole budget."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(size * dtype.itemsize, dtype=np.uint8)).view(dtype)
    return torch.zeros(size, dtype=dtype, device=device)


def slot_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    slot_step: Step | None = None,
    **unsupported: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over a SlotCache: query [B, H, T, D], key and value [B, K, S, D] → [B, T, H, D].

    Raises ValueError for models whose attention has features other than a sliding window.
    """
    window = unsupported.get("sliding_window")
    for name in ("softcap", "s_aux", "position_bias"):
        if unsupported.get(name) is not None:
            raise ValueError(f"the model's attention uses {name}, which the transformers engine does not support")
    if slot_step is None:
        raise ValueError("the model does not pass the engine's step to its attention layers")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if slot_step.lengths is None:
        return _prefill(query, key, value, scaling, window, slot_step), None
    return _decode(query, key, value, scaling, window, slot_step), None


def _prefill(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int | None, step: Step
) -> torch.Tensor:
    """Causal attention of the last T of S positions, a sequence or a tree: [1, H, T, D] → [1, T, H, D]."""
    new, seen = query.shape[2], key.shape[2]
    if step.flash is not None and step.ends is None:
        return step.flash.flash_attn_func(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            softmax_scale=scaling,
            causal=True,  # aligned to the end, as chunks require
            window_size=(window - 1, 0) if window else (-1, -1),
        )
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _prefill_bf16_cpu(query, key, value, scaling, window, step)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if new == seen and not window and step.ends is None:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    else:
        mask = torch.ones(new, seen, dtype=torch.bool, device=query.device)
        first = 0 if window else seen - new  # without a window, all earlier positions are visible
        mask[:, first:] = _visible(step, 0, new, first, seen, window, query.device)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None], scale=scaling)
    return out.transpose(1, 2)


def _prefill_bf16_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int | None, step: Step
) -> torch.Tensor:
    """``_prefill`` on CPUs in bfloat16, in blocks of queries whose scores stay in the processor's cache.

    About 1.6 times as fast as the fused kernel, whose blocks are too small for the bfloat16 units. The G query heads of
    a key-value head are rows of one product: [K, G·t, D] × [K, D, s].
    """
    _, heads, new, dim = query.shape
    kv_heads, seen = key.shape[1], key.shape[2]
    out = torch.empty(heads, new, dim, dtype=query.dtype)
    for first in range(0, new, QUERY_BLOCK):
        block = min(QUERY_BLOCK, new - first)
        place = seen - new + first  # position of the block's first query
        start = max(0, place - window + 1) if window and step.ends is None else 0
        stop = place + block
        rows = (query[0, :, first : first + block] * scaling).reshape(kv_heads, -1, dim)
        scores = torch.bmm(rows, key[0, :, start:stop].transpose(1, 2)).view(heads, block, stop - start)
        # Without a window, a sequence sees all positions before the block, and a tree all before its root.
        masked = start if window else place if step.ends is None else seen - new
        visible = _visible(step, first, block, masked, stop, window, query.device)
        scores[..., masked - start :].masked_fill_(~visible, float("-inf"))
        weights = torch.softmax(scores, dim=-1).view(kv_heads, -1, stop - start)
        out[:, first : first + block] = torch.bmm(weights, value[0, :, start:stop]).view(heads, block, dim)
    return out.transpose(0, 1)[None]


def _visible(
    step: Step, first: int, queries: int, start: int, stop: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Mask of positions ``start`` … ``stop − 1`` visible to new tokens ``first`` …: bool [queries, stop − start]."""
    query = torch.arange(step.start + first, step.start + first + queries, device=device)[:, None]
    key = torch.arange(start, stop, device=device)[None, :]
    seen = key <= query
    if step.ends is None:
        return seen & (key > query - window) if window else seen
    assert step.depths is not None
    new = (key - step.start).clamp(min=0)
    end = torch.where(key < step.start, stop, step.start + step.ends[new])
    seen &= query < end  # the query is in the key's subtree, or the key precedes the tree
    if window:
        position = torch.where(key < step.start, key, step.start + step.depths[new])
        seen &= position > step.start + step.depths[query - step.start] - window
    return seen


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None,
    step: Step,
) -> torch.Tensor:
    """One new token per slot: [B, H, 1, D] → [B, 1, H, D]. A key-value head is read once for its G query heads."""
    batch, heads, _, dim = query.shape
    kv_heads, seen = key.shape[1], key.shape[2]
    if step.flash is not None:
        assert step.lengths is not None
        return step.flash.flash_attn_with_kvcache(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            cache_seqlens=(step.lengths + 1).to(torch.int32),
            softmax_scale=scaling,
            causal=True,
            window_size=(window - 1, 0) if window else (-1, -1),
        )
    grouped = query.view(batch, kv_heads, heads // kv_heads, dim)
    bias = step.bias(query)
    if window:
        assert step.lengths is not None
        places = torch.arange(seen, device=query.device)
        bias = bias.masked_fill((places[None, :] <= step.lengths[:, None] - window)[:, None, None, :], float("-inf"))
    if query.device.type != "cpu":
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=bias, scale=scaling)
        return out.reshape(batch, 1, heads, dim)
    # On CPUs two batched products read the cache 2.5 times as fast as the fused kernel, whose blocks are made for many
    # queries: [B·K, G, D] × [B·K, D, S], softmax in float32, [B·K, G, S] × [B·K, S, D].
    flat_key, flat_value = (
        key.reshape(batch * kv_heads, seen, dim),
        value.reshape(batch * kv_heads, seen, dim),
    )
    scores = torch.bmm(grouped.reshape(batch * kv_heads, -1, dim) * scaling, flat_key.transpose(1, 2))
    scores = scores.view(batch, kv_heads, -1, seen) + bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.bmm(weights.view(batch * kv_heads, -1, seen), flat_value)
    return out.view(batch, 1, heads, dim)


AttentionInterface.register(ATTENTION, slot_attention)
