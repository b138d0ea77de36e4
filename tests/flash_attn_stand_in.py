"""flash-attn's varlen function for the CPU: slow, and strict about what the CUDA kernel requires of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

MAX_HEAD_DIM = 256


@dataclass
class VarlenStandIn:
    """Callable like ``flash_attn_varlen_func`` of flash-attn 2; records the offsets and shapes of its calls.

    The requirements are those of ``mha_varlen_fwd`` in csrc/flash_attn/flash_api.cpp. A head dimension that is not a
    multiple of 8 is padded, as FlashAttnVarlenFunc does: the result is then a view that is not contiguous.
    """

    offsets: list[list[int]] = field(default_factory=list)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # of q and k
    dropouts: list[float] = field(default_factory=list)

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """q [tokens, H, D], k and v [tokens, K, D], offsets [sequences + 1] → [tokens, H, D]."""
        total, heads, dim = q.shape
        kv_heads = k.shape[1]
        assert causal, "not used otherwise"
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert k.dtype == v.dtype == q.dtype
        assert q.device == k.device == v.device == cu_seqlens_q.device == cu_seqlens_k.device
        assert k.shape == v.shape == (total, kv_heads, dim)
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert 0 < dim <= MAX_HEAD_DIM
        assert kv_heads > 0
        assert heads > 0
        assert heads % kv_heads == 0
        for offsets, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)):
            assert offsets.dtype == torch.int32
            assert offsets.is_contiguous()
            assert offsets.dim() == 1
            assert len(offsets) >= 2
            assert offsets[0] == 0
            assert offsets[-1] == total
            lengths = offsets.diff()
            assert bool((lengths >= 0).all())
            assert type(longest) is int
            assert longest >= int(lengths.max())
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        self.offsets.append(cu_seqlens_q.tolist())
        self.shapes.append((tuple(q.shape), tuple(k.shape)))
        self.dropouts.append(dropout_p)
        scale = dim**-0.5 if softmax_scale is None else softmax_scale
        keys, values = (t.float().repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        done = []
        for start, stop in zip(self.offsets[-1], self.offsets[-1][1:], strict=False):
            scores = torch.einsum("qhd,khd->hqk", q[start:stop].float(), keys[start:stop]) * scale
            hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            done.append(torch.einsum("hqk,khd->qhd", weights, values[start:stop]))
        padded = torch.nn.functional.pad(torch.cat(done).to(q.dtype), (0, -dim % 8))
        return padded[..., :dim]
