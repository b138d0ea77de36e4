"""On a CUDA device: the engine's text equals transformers' own, with SDPA and, where installed, with flash-attn."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaray.engines.local.batching import ContinuousBatcher
from qaray.engines.local.causal_lm import CausalLM
from qaray.engines.local.sampling import Sampling
from qaray.engines.local.scoring import Scorer
from tests.unit.test_batching import LENGTHS, greedy, ids_of, prompt, settings
from tests.unit.test_scoring import CHOICES, PREFIX, SUFFIXES
from tests.unit.test_scoring import settings as scored

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_greedy_equals_transformers_in_float32(tiny_model):
    model = CausalLM(settings(tiny_model, batch_tokens=4096))
    assert model.device.type == "cuda"
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    prompts = [prompt(i, ids_of(n), max_tokens=30) for i, n in enumerate(LENGTHS)]
    done = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 4).complete_all(prompts)
    for found, asked in zip(done, prompts, strict=True):
        assert found["output"] == model.tokenizer.decode(greedy(reference, asked["token_ids"], 30))


def test_flash_attn_agrees_with_sdpa(tiny_model):
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    flash = CausalLM(settings(tiny_model, dtype="bfloat16", batch_tokens=4096))
    plain = CausalLM(settings(tiny_model, dtype="bfloat16", batch_tokens=4096, flash_attn=False))
    assert (flash.attention, plain.attention) == ("flash-attn", "SDPA")
    logits = []
    for model in (flash, plain):
        model.cache.shape(2, 512)
        model.chunk = 100
        model.prefill(0, ids_of(250))
        model.prefill(1, ids_of(200))
        logits.append(model.decode([5, 6], [250, 200]))
    assert torch.nn.functional.cosine_similarity(*logits, dim=-1).min() > 0.98


def test_memory_is_taken_from_what_the_device_has(tiny_model):
    model = CausalLM(settings(tiny_model))
    per_token = 2 * model.layers * model.kv_heads * model.head_dim * model.dtype.itemsize
    assert 0 < model.budget_tokens * per_token < torch.cuda.get_device_properties(0).total_memory


def test_scores_equal_those_of_the_cpu(tiny_model):
    """A judge's tree of choices over a shared prefix, in float32."""
    scores = [Scorer(CausalLM(scored(tiny_model, gpus=gpus))).logprobs(PREFIX, SUFFIXES, CHOICES) for gpus in (1, 0)]
    torch.testing.assert_close(torch.tensor(scores[0]), torch.tensor(scores[1]), atol=1e-3, rtol=1e-3)
