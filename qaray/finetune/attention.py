"""Attention kernels of a training, and S²-Attn, the shifted sparse attention of LongLoRA (arXiv 2309.12307).

The sequence is split into groups. The first half of the heads attends within groups; the other half within groups that
are shifted by half a group, so that information reaches the next group one layer later. The shifted groups do not wrap
around: the first one is half as long, and the start of a sequence never attends to its end (as LongLoRA's
``llama_attn_replace_sft.forward_flashattn``). In evaluation and with a KV cache, attention is full.
Shapes: B sequences, H query heads, K key-value heads, S tokens, D head dimension.

transformers calls ``s2_attention`` through its attention interface and ``keep_padding`` through its mask interface.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from qaray.config import ConfigError, FineTuneConfig

ATTENTION = "qaray_s2"
MAX_GROUP = 8192  # tokens; group size if the length is not a multiple of 4096
MAX_FLASH_DIM = 256  # largest head dimension of flash-attn
FLASH_DTYPES = (torch.float16, torch.bfloat16)

Varlen = Callable[..., torch.Tensor]  # flash_attn_varlen_func


def implementation(config: FineTuneConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The ``attn_implementation`` to load a model with for training; registers S²-Attn with transformers if it is used.

    ``dtype``: of the queries, keys and values; autocast's if the weights differ. Raises ConfigError if flash-attn is
    installed but cannot be imported.
    """
    varlen = _flash_attn_varlen() if _uses_flash_attn(config, device, dtype) else None
    if config.use_full_attn:
        return "sdpa" if varlen is None else "flash_attention_2"
    AttentionInterface.register(ATTENTION, functools.partial(s2_attention, group=config.s2_group_size, varlen=varlen))
    AttentionMaskInterface.register(ATTENTION, keep_padding)
    return ATTENTION


def kernel_in_use(config: FineTuneConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The attention kernel of training, for logs. ``dtype``: as of ``implementation``.

    Head dimensions over 256 are computed by scaled_dot_product_attention even if this is flash-attn.
    """
    flash = _uses_flash_attn(config, device, dtype)
    if config.use_full_attn:
        return "flash_attention_2" if flash else "sdpa"
    return "s2: flash-attn varlen" if flash else "s2: scaled_dot_product_attention"


def flash_attn_missing(config: FineTuneConfig, device: torch.device) -> bool:
    """Whether flash-attn is requested and the device is a GPU, but the package is not installed."""
    return config.use_flash_attn and device.type == "cuda" and not has_flash_attn()


def has_flash_attn() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def _uses_flash_attn(config: FineTuneConfig, device: torch.device, dtype: torch.dtype) -> bool:
    if not config.use_flash_attn or device.type != "cuda" or dtype not in FLASH_DTYPES or not has_flash_attn():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)  # flash-attn 2 requires Ampere


def _flash_attn_varlen() -> Varlen:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:  # built for another torch or CUDA
        raise ConfigError(
            f"flash-attn is installed but cannot be imported ({str(error).splitlines()[0]}): reinstall it, or add "
            "--use_flash_attn False"
        ) from None
    return flash_attn_varlen_func


def group_size(length: int, wanted: int | None = None) -> int:
    """Group size in tokens: ``wanted`` if given, else by LongLoRA's rule for fine-tuning."""
    if wanted:
        return wanted
    return length // 4 if length % 4096 == 0 else MAX_GROUP


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
    varlen: Varlen | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer: query [B, H, S, D], key and value [B, K, S, D] → ([B, S, H, D], no weights).

    ``attention_mask``: result of ``keep_padding``. ``group``: group size in tokens, None for LongLoRA's rule.
    ``varlen``: flash-attn's function, None for scaled_dot_product_attention.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    length = query.shape[2]
    if not module.training or key.shape[2] != length:
        return _full(query, key, value, attention_mask, scaling).transpose(1, 2), None
    size = group_size(length, group)
    grouped = functools.partial(_grouped, keep=attention_mask, scaling=scaling, dropout=dropout, varlen=varlen)
    if size // 2 >= length:  # one group in both halves
        return grouped(query, key, value, [(0, length)]).transpose(1, 2), None
    half = query.shape[1] // 2
    parts = []
    for heads, first in ((slice(0, half), size), (slice(half, None), size // 2)):
        kv_heads = _kv_heads(heads, query.shape[1], key.shape[1], key.device)
        groups = borders(length, first, size)
        parts.append(grouped(query[:, heads], key[:, kv_heads], value[:, kv_heads], groups))
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
    groups: list[tuple[int, int]],
    keep: torch.Tensor | None,
    scaling: float,
    dropout: float,
    varlen: Varlen | None,
) -> torch.Tensor:
    """Causal attention within groups: [B, h, S, D]."""
    if varlen is not None and keep is None and _supports_flash(query, value):
        return _varlen(varlen, query, key, value, groups, scaling, dropout)
    done = [_batched(query, key, value, keep, run, count, scaling, dropout) for run, count in _runs(groups)]
    return torch.cat(done, dim=2)


def _compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Under autocast, float32 weights and RoPE leave float32 queries, which scaled_dot_product_attention casts."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _supports_flash(query: torch.Tensor, value: torch.Tensor) -> bool:
    dim = query.shape[3]
    return query.shape[1] > 0 and dim == value.shape[3] <= MAX_FLASH_DIM and _compute_dtype(query) in FLASH_DTYPES


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
    size = (run.stop - run.start) // count

    def split(tensor: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = tensor.shape
        cut = tensor[:, :, run].reshape(batch, heads, count, size, dim)
        return cut.transpose(1, 2).reshape(batch * count, heads, size, dim)

    own = None if keep is None else keep[:, run].reshape(keep.shape[0] * count, size)
    out = _full(split(query), split(key), split(value), own, scaling, dropout)
    batch, heads, dim = query.shape[0], query.shape[1], value.shape[3]
    return out.reshape(batch, count, heads, size, dim).transpose(1, 2).reshape(batch, heads, count * size, dim)


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


def _varlen(
    varlen: Varlen,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: list[tuple[int, int]],
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Grouped attention in one call of flash-attn, with groups as sequences of a packed batch: [B, h, S, D]."""
    batch, heads, length, dim = query.shape
    starts = [row * length + start for row in range(batch) for start, _ in groups] + [batch * length]
    offsets = torch.tensor(starts, dtype=torch.int32, device=query.device)
    longest = max(stop - start for start, stop in groups)
    dtype = _compute_dtype(query)
    packed = (t.to(dtype).transpose(1, 2).reshape(batch * length, t.shape[1], dim) for t in (query, key, value))
    out = varlen(*packed, offsets, offsets, longest, longest, dropout_p=dropout, softmax_scale=scaling, causal=True)
    return out.view(batch, length, heads, dim).transpose(1, 2)
