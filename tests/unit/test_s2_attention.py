"""S²-Attn against a slow version with a dense mask: values, gradients, and what may not be seen."""

import pytest
import torch
from torch import nn

from qaray.finetune.attention import borders, group_size, keep_padding, s2_attention


class Layer(nn.Module):
    """What transformers hands over: only its mode matters."""


def dense(query, key, value, keep, group):
    """The definition: each head's visible places written out."""
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
    scores = (query @ key.transpose(-1, -2)) * dim**-0.5
    return (scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def tensors(batch, heads, kv_heads, length, dim=8):
    torch.manual_seed(length * heads + batch)
    sizes = ((heads, length), (kv_heads, length), (kv_heads, length))
    return [torch.randn(batch, h, s, dim, dtype=torch.float64, requires_grad=True) for h, s in sizes]


SHAPES = [
    (1, 4, 4, 64, 16), (2, 4, 2, 64, 16), (1, 9, 3, 61, 16), (2, 6, 3, 37, 8), (1, 4, 1, 50, 20), (1, 8, 2, 33, 32),
    (2, 4, 2, 15, 32), (1, 4, 2, 20, 32), (1, 2, 2, 1, 4), (1, 5, 5, 23, 2), (1, 4, 4, 31, 7), (3, 9, 9, 40, 10),
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
