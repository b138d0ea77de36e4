"""Scores of choices over shared prefixes against one dense forward pass a choice."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaray.engines.local.causal_lm import CausalLM, ModelSettings
from qaray.engines.local.scoring import Scorer
from tests.conftest import save_tiny_model

PREFIX = "A paper about iron and its oxides. " * 5
SUFFIXES = ["How good? ", "How bad, in all? ", "How good is the answer? ", "Why? "]
CHOICES = ["0\n", "1\n", "10\n", "100\n", "5\n", "50\n"]


def settings(name, **changes):
    return ModelSettings(**{"name": name, "cache_dir": "cache", "seq_len": 512, "dtype": "float32", **changes})


@pytest.fixture(scope="module")
def model(tiny_model):
    return CausalLM(settings(tiny_model, batch_tokens=2048))


def dense(path, prefix, suffix, choices):
    """The slow way: a pass over the whole text for every choice."""
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = CausalLM(settings(path, batch_tokens=512)).tokenizer
    head = [tokenizer.bos_id] * tokenizer.adds_bos + tokenizer.encode(prefix) + tokenizer.encode(suffix)
    found = []
    for choice in choices:
        tail = tokenizer.encode(choice)
        with torch.no_grad():
            logits = reference(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        rows = range(len(head) - 1, len(head) + len(tail) - 1)
        found.append(sum(float(logits[r, t]) for r, t in zip(rows, tail, strict=True)))
    return found


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}])
def test_scores_equal_a_dense_forward(changes, tmp_path):
    path = save_tiny_model(tmp_path, **changes)
    scorer = Scorer(CausalLM(settings(path)))
    found = scorer.logprobs(PREFIX, SUFFIXES, CHOICES)
    for suffix, row in zip(SUFFIXES, found, strict=True):
        assert row == pytest.approx(dense(path, PREFIX, suffix, CHOICES), abs=1e-4)


def test_a_window_of_attention_counts_positions_not_places(tmp_path):
    """In a tree a token's place lies far behind its position: a window over places would hide its ancestors."""
    from transformers import MistralConfig, MistralForCausalLM

    save_tiny_model(tmp_path)
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=24, bos_token_id=0, eos_token_id=1,
        initializer_range=0.5,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    found = Scorer(CausalLM(settings(str(tmp_path)))).logprobs(PREFIX, SUFFIXES, CHOICES)
    for suffix, row in zip(SUFFIXES, found, strict=True):
        assert row == pytest.approx(dense(str(tmp_path), PREFIX, suffix, CHOICES), abs=1e-4)


@pytest.mark.parametrize("tree_tokens", [1, 40, 64, 4096])
def test_what_shares_a_pass_changes_no_score(model, tree_tokens):
    together = Scorer(model, tree_tokens).logprobs(PREFIX, SUFFIXES, CHOICES)
    alone = [Scorer(model).logprobs(PREFIX, [suffix], CHOICES)[0] for suffix in SUFFIXES]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert Scorer(model).logprobs(PREFIX, SUFFIXES[::-1], CHOICES[::-1])[0][::-1] == pytest.approx(alone[-1], abs=1e-4)


def test_bfloat16_agrees_with_float32(tmp_path):
    """The kernels for bfloat16 on CPUs have a path of their own."""
    path = save_tiny_model(tmp_path, initializer_range=0.15)
    exact = Scorer(CausalLM(settings(path))).logprobs(PREFIX, SUFFIXES, CHOICES)
    rough = Scorer(CausalLM(settings(path, dtype="bfloat16"))).logprobs(PREFIX, SUFFIXES, CHOICES)
    for one, other in zip(exact, rough, strict=True):
        assert one == pytest.approx(other, abs=0.1)


def test_shared_tokens_are_read_once(model):
    scorer = Scorer(model)
    prefix, suffixes = "x" * 100, [f"the same beginning of all {i}?" for i in range(4)]
    bos = model.tokenizer.adds_bos
    scorer.logprobs(prefix, suffixes, ["1\n", "10\n"])
    # "the same beginning of all " 26 bytes once, then for each of four suffixes "i", "?", "1", "0"
    assert scorer.computed == bos + 100 + 26 + 4 * 4
    before = scorer.computed
    scorer.logprobs("x" * 60 + "y", ["?"], ["a", "b"])  # begins like the prefix that is there
    assert scorer.computed == before + 1 + 1
    before = scorer.computed
    scorer.logprobs("x" * 60 + "y", ["?"], ["a", "b"])
    assert scorer.computed == before + 1


def test_a_prefix_after_another_is_scored_as_if_it_came_first(model):
    scorer = Scorer(model)
    expected = Scorer(model).logprobs("iron" * 20 + "B", SUFFIXES, CHOICES)
    scorer = Scorer(model)
    scorer.logprobs("iron" * 25, SUFFIXES, CHOICES)
    scorer.logprobs("iron" * 10, SUFFIXES[:1], CHOICES)
    found = scorer.logprobs("iron" * 20 + "B", SUFFIXES, CHOICES)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_what_cannot_be_scored_is_said(model):
    scorer = Scorer(model)
    with pytest.raises(ValueError, match="empty"):
        scorer.logprobs(PREFIX, ["x"], ["", "a"])
    with pytest.raises(ValueError, match="empty"):
        scorer.logprobs(PREFIX, [""], ["a"])
    with pytest.raises(ValueError, match="the maximum is"):
        scorer.logprobs("x" * 5000, ["y"], ["a"])
    assert scorer.logprobs(PREFIX, [], ["a"]) == []
