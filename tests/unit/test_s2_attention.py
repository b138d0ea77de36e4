"""S²-Attn against a slow version with a dense mask: values, gradients, and what may not be seen.

Its path through flash-attn runs on a stand-in for flash-attn's function.
"""

import sys

import pytest
import torch
from torch import nn

from qaray.config import ConfigError, FineTuneConfig
from qaray.finetune.attention import (
    ATTENTION,
    borders,
    flash_attn_missing,
    group_size,
    implementation,
    keep_padding,
    kernel_in_use,
    s2_attention,
)
from tests.flash_attn_stand_in import VarlenStandIn


class Layer(nn.Module):
    """What transformers hands over: only its mode matters."""


def dense(query, key, value, keep, group, scaling=None):
    """The definition: each head's visible places written out.

    LongLoRA's llama_attn_replace_sft.forward_flashattn (github.com/dvlab-research/LongLoRA) packs the same groups.
    """
    batch, heads, length, dim = query.shape
    shared = heads // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    place = torch.arange(length)
    causal = place[None, :] <= place[:, None]
    plain = place // group
    shifted = (place + group - group // 2) // group  # the first group is half a group long
    same = torch.stack([(g[:, None] == g[None, :]) & causal for g in (plain, shifted)])
    head = (torch.arange(heads) >= heads // 2).long()
    visible = same[head][None].expand(batch, -1, -1, -1)
    if keep is not None:
        visible = visible & keep[:, None, None, :] | torch.eye(length, dtype=torch.bool)
    scores = (query @ key.transpose(-1, -2)) * (dim**-0.5 if scaling is None else scaling)
    return (scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def tensors(batch, heads, kv_heads, length, dim=8):
    torch.manual_seed(length * heads + batch)
    sizes = ((heads, length), (kv_heads, length), (kv_heads, length))
    return [torch.randn(batch, h, s, dim, dtype=torch.float64, requires_grad=True) for h, s in sizes]


SHAPES = [
    (1, 4, 4, 64, 16), (2, 4, 2, 64, 16), (1, 9, 3, 61, 16), (2, 6, 3, 37, 8), (1, 4, 1, 50, 20), (1, 8, 2, 33, 32),
    (2, 4, 2, 15, 32), (1, 4, 2, 20, 32), (1, 2, 2, 1, 4), (1, 5, 5, 23, 2), (1, 4, 4, 31, 7), (3, 9, 9, 40, 10),
    (2, 1, 1, 20, 8),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "length", "group"), SHAPES)
@pytest.mark.parametrize("padding", ["none", "end", "start"])
def test_values_and_gradients_are_those_of_a_dense_mask(batch, heads, kv_heads, length, group, padding):
    """Odd lengths, shared and odd numbers of heads, groups longer than the sequence."""
    query, key, value = tensors(batch, heads, kv_heads, length)
    mask = torch.ones(batch, length, dtype=torch.long)
    cut = length // 4
    if padding != "none" and cut:
        mask[0, -cut:] = 0
        mask = mask if padding == "end" else mask.flip(1)
    keep = keep_padding(attention_mask=mask)
    assert (keep is None) == (padding != "start" or not cut)
    real = mask.bool()
    out, weights = s2_attention(Layer().train(), query, key, value, keep, group=group)
    expected = dense(query, key, value, real, group)
    assert weights is None
    torch.testing.assert_close(out[real], expected[real])
    probe = torch.randn_like(out) * real[:, :, None, None]
    found = torch.autograd.grad((out * probe).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * probe).sum(), (query, key, value))
    for mine, slow in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, slow)
        assert not mine.isnan().any()


@pytest.mark.parametrize("length", [64, 61])
def test_nothing_flows_from_later_tokens_to_earlier_ones(length):
    """A group that wrapped round would show the end at the start (LongLoRA issue 15)."""
    query, key, value = tensors(1, 4, 2, length)
    before, _ = s2_attention(Layer().train(), query, key, value, None, group=16)
    for place in (length - 1, length // 2, 8):
        changed = [t.detach().clone() for t in (query, key, value)]
        for tensor in changed:
            tensor[:, :, place:] += 1
        after, _ = s2_attention(Layer().train(), *changed, None, group=16)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place:], before[:, place:])


def test_neighbouring_groups_are_linked_by_the_shifted_half_only():
    query, key, value = (t.detach() for t in tensors(1, 4, 4, 32))
    before, _ = s2_attention(Layer().train(), query, key, value, None, group=16)
    changed = value.clone()
    changed[:, :, 12] += 1
    after, _ = s2_attention(Layer().train(), query, key, changed, None, group=16)
    moved = (after != before).any(-1)[0]  # [S, H]
    assert moved[:, 0].nonzero()[:, 0].tolist() == [12, 13, 14, 15]
    assert moved[:, 3].nonzero()[:, 0].tolist() == list(range(12, 24))


def test_evaluation_and_decoding_attend_to_everything():
    query, key, value = (t.detach() for t in tensors(2, 4, 2, 40))
    full = nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True
    ).transpose(1, 2)
    out, _ = s2_attention(Layer().eval(), query, key, value, None, group=8)
    torch.testing.assert_close(out, full)
    last, _ = s2_attention(Layer().train(), query[:, :, -1:], key, value, None, group=8)  # with a cache
    torch.testing.assert_close(last, full[:, -1:])


def test_groups_follow_the_rule():
    assert [group_size(n) for n in (4096, 8192, 12288, 16384, 5000, 100)] == [1024, 2048, 3072, 4096, 8192, 8192]
    assert group_size(4096, 512) == 512
    assert borders(10, 4, 4) == [(0, 4), (4, 8), (8, 10)]
    assert borders(10, 2, 4) == [(0, 2), (2, 6), (6, 10)]
    assert borders(3, 4, 4) == [(0, 3)]


# batch, heads, kv_heads, length, group, dim, (query heads, kv heads) of each call of flash-attn
VARLEN = [
    (1, 4, 4, 64, 16, 8, [(2, 2), (2, 2)]),  # whole groups
    (2, 4, 4, 61, 16, 8, [(2, 2), (2, 2)]),  # the last group is shorter
    (1, 2, 2, 40, 10, 16, [(1, 1), (1, 1)]),
    (1, 2, 2, 23, 7, 8, [(1, 1), (1, 1)]),  # odd group: the first shifted one has 3 tokens
    (2, 2, 2, 16, 16, 8, [(1, 1), (1, 1)]),  # as long as a group: two shifted halves
    (2, 2, 2, 9, 16, 8, [(1, 1), (1, 1)]),
    (2, 6, 2, 8, 16, 8, [(6, 2)]),  # as long as half a group: full attention
    (2, 2, 2, 1, 16, 8, [(2, 2)]),
    (2, 8, 2, 33, 8, 8, [(4, 1), (4, 1)]),  # each half has its own kv head
    (2, 8, 4, 33, 8, 8, [(4, 2), (4, 2)]),
    (1, 4, 1, 50, 20, 8, [(2, 1), (2, 1)]),  # both halves share the only kv head
    (2, 6, 2, 33, 8, 8, [(3, 1), (3, 1)]),
    (2, 6, 3, 37, 8, 8, [(3, 3), (3, 3)]),  # the halves split a kv head: one per query head
    (1, 9, 3, 61, 16, 8, [(4, 4), (5, 5)]),  # odd number of heads
    (2, 5, 5, 23, 8, 8, [(2, 2), (3, 3)]),
    (1, 7, 1, 23, 8, 8, [(3, 1), (4, 1)]),
    (1, 1, 1, 20, 8, 8, [(1, 1)]),
    (2, 4, 2, 30, 8, 100, [(2, 1), (2, 1)]),  # flash-attn pads such head dimensions
    (1, 2, 1, 12, 4, 256, [(1, 1), (1, 1)]),
]


def longlora_offsets(batch, length, group):
    """Where LongLoRA's groups begin, in tokens of the packed batch: of the plain and of the shifted half."""
    ends = [[0, *range(first, length, group)] for first in (group, group // 2)]
    return [[row * length + end for row in range(batch) for end in half] + [batch * length] for half in ends]


def projected(batch, heads, kv_heads, length, dim, dtype):
    """Queries, keys and values with the strides that projections give them: [B, S, H, D] transposed."""
    torch.manual_seed(length * heads + batch)
    return [
        torch.randn(batch, length, h, dim).to(dtype).requires_grad_().transpose(1, 2)
        for h in (heads, kv_heads, kv_heads)
    ]


def tolerance(dtype):
    eps = torch.finfo(dtype).eps
    return {"rtol": 4 * eps, "atol": 4 * eps}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "length", "group", "dim", "calls"), VARLEN)
def test_flash_attn_computes_longloras_groups(batch, heads, kv_heads, length, group, dim, calls, padded, dtype):
    """Values and gradients of both paths are the definition's, at a scale of its own; padding is on the right."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length - length // 3 * padded :] = 0
    keep, real = keep_padding(attention_mask=mask), mask.bool()
    assert keep is None
    inputs = projected(batch, heads, kv_heads, length, dim, dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    scaling = 0.7 * dim**-0.5
    expected = dense(*exact, real, group, scaling)
    probe = torch.randn(expected.shape).to(dtype) * real[:, :, None, None]
    wanted = torch.autograd.grad((expected * probe).sum(), exact)
    varlen = VarlenStandIn()
    for function in (varlen, None):
        out, _ = s2_attention(Layer().train(), *inputs, keep, scaling=scaling, group=group, varlen=function)
        assert out.dtype == dtype
        assert out.shape == (batch, length, heads, dim)
        torch.testing.assert_close(out[real].double(), expected[real], **tolerance(dtype))
        found = torch.autograd.grad(out, inputs, probe)
        for mine, slow in zip(found, wanted, strict=True):
            scale = slow.abs().max().clamp(min=1)
            torch.testing.assert_close(mine.double() / scale, slow / scale, **tolerance(dtype))
    assert [(q[1], k[1]) for q, k in varlen.shapes] == calls
    plain, shifted = longlora_offsets(batch, length, group)
    assert varlen.offsets == ([plain, shifted] if len(calls) == 2 else [shifted])
    assert varlen.dropouts == [0.0] * len(calls)


@pytest.mark.parametrize(("length", "size"), [(4096, 1024), (4100, 8192)])
def test_flash_attn_groups_follow_longloras_rule(length, size):
    inputs = [t.detach() for t in projected(1, 2, 2, length, 8, torch.bfloat16)]
    varlen = VarlenStandIn()
    out, _ = s2_attention(Layer().train(), *inputs, None, varlen=varlen)
    assert varlen.offsets == longlora_offsets(1, length, size)
    torch.testing.assert_close(out, s2_attention(Layer().train(), *inputs, None)[0], atol=2e-2, rtol=2e-2)


def test_autocast_decides_on_flash_attn():
    """Without DeepSpeed the weights are float32: RoPE leaves float32 queries and keys beside values of 16 bits."""
    query, key, value = projected(1, 4, 2, 24, 8, torch.float32)
    mixed = (query, key, value.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        varlen = VarlenStandIn()
        out, _ = s2_attention(Layer().train(), *mixed, None, group=8, varlen=varlen)
        other, _ = s2_attention(Layer().train(), *mixed, None, group=8)
    assert len(varlen.shapes) == 2
    assert out.dtype == other.dtype == torch.bfloat16
    torch.testing.assert_close(out, other, atol=2e-2, rtol=2e-2)
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(out.sum(), mixed))


def left_padding():
    mask = torch.ones(1, 24, dtype=torch.long)
    mask[0, :3] = 0
    return keep_padding(attention_mask=mask)


@pytest.mark.parametrize(
    ("dtype", "dim", "value_dim", "keep"),
    [
        (torch.float32, 8, 8, None),
        (torch.float64, 8, 8, None),
        (torch.bfloat16, 264, 264, None),
        (torch.bfloat16, 24, 16, None),  # multi-head latent attention
        (torch.bfloat16, 8, 8, left_padding()),
    ],
)
def test_what_flash_attn_does_not_support_is_computed_without_it(dtype, dim, value_dim, keep):
    varlen = VarlenStandIn()
    query, key, _ = (t.detach() for t in projected(1, 4, 2, 24, dim, dtype))
    value = torch.randn(1, 2, 24, value_dim, dtype=dtype)
    out, _ = s2_attention(Layer().train(), query, key, value, keep, group=8, varlen=varlen)
    expected = dense(query.double(), key.double(), value.double(), keep, 8)
    real = torch.ones(1, 24, dtype=torch.bool) if keep is None else keep
    torch.testing.assert_close(out[real].double(), expected[real], atol=2e-2, rtol=2e-2)
    assert not varlen.shapes


CPU, GPU = torch.device("cpu"), torch.device("cuda")
AMPERE, TURING = (8, 0), (7, 5)
KERNELS = [  # device, dtype, capability, flash-attn installed, --use_flash_attn → S²-Attn, full attention, missing
    (GPU, torch.bfloat16, AMPERE, True, True, "s2: flash-attn varlen", "flash_attention_2", False),
    (GPU, torch.float16, AMPERE, True, True, "s2: flash-attn varlen", "flash_attention_2", False),
    (GPU, torch.float32, AMPERE, True, True, "s2: scaled_dot_product_attention", "sdpa", False),
    (GPU, torch.float16, TURING, True, True, "s2: scaled_dot_product_attention", "sdpa", False),
    (GPU, torch.bfloat16, AMPERE, False, True, "s2: scaled_dot_product_attention", "sdpa", True),
    (GPU, torch.bfloat16, AMPERE, False, False, "s2: scaled_dot_product_attention", "sdpa", False),
    (GPU, torch.bfloat16, AMPERE, True, False, "s2: scaled_dot_product_attention", "sdpa", False),
    (CPU, torch.bfloat16, None, True, True, "s2: scaled_dot_product_attention", "sdpa", False),
    (CPU, torch.bfloat16, None, False, True, "s2: scaled_dot_product_attention", "sdpa", False),
]


def settings(**values):
    return FineTuneConfig(
        **{"model_name_or_path": "org/model", "data_path": "train.json", "output_dir": "out", **values}
    )


def install_flash_attn(monkeypatch, folder, source):
    """A package of that name, before one that may be installed."""
    (folder / "flash_attn").mkdir()
    (folder / "flash_attn" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.delitem(sys.modules, "flash_attn")


@pytest.mark.parametrize(("device", "dtype", "capability", "installed", "wanted", "s2", "full", "missing"), KERNELS)
def test_the_kernel_follows_device_dtype_and_package(
    monkeypatch, tmp_path, device, dtype, capability, installed, wanted, s2, full, missing
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if installed:
        install_flash_attn(monkeypatch, tmp_path, "def flash_attn_varlen_func(*_, **__): pass")
    else:
        monkeypatch.setattr("qaray.finetune.attention.has_flash_attn", lambda: False)
    shifted = settings(use_flash_attn=wanted)
    assert kernel_in_use(shifted, device, dtype) == s2
    assert implementation(shifted, device, dtype) == ATTENTION
    whole = settings(use_flash_attn=wanted, use_full_attn=True)
    assert kernel_in_use(whole, device, dtype) == implementation(whole, device, dtype) == full
    assert flash_attn_missing(shifted, device) == missing


@pytest.mark.parametrize("full", [False, True])
def test_a_broken_flash_attn_is_told_in_one_line(monkeypatch, tmp_path, full):
    install_flash_attn(monkeypatch, tmp_path, "raise ImportError('undefined symbol: _ZN3c10\\nand more')")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: AMPERE)
    with pytest.raises(
        ConfigError, match=r"\(undefined symbol: _ZN3c10\): reinstall it, or add --use_flash_attn False"
    ):
        implementation(settings(use_full_attn=full), GPU, torch.bfloat16)
