"""The slot cache and continuous batching against transformers' own generate, and what happens when memory runs out."""

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from qaray.config import ConfigError
from qaray.engines.local import causal_lm, kv_cache
from qaray.engines.local.batching import ContinuousBatcher
from qaray.engines.local.causal_lm import CausalLM, ModelSettings
from qaray.engines.local.sampling import Sampling
from qaray.models.rope import scale_rope
from qaray.schema import Failure, FinishReason, failure_of
from tests.conftest import save_tiny_model

LENGTHS = [90, 13, 200, 47, 5, 131, 64, 64, 250]


def prompt(number, ids, max_tokens=40, **fields):
    return {
        "doi": f"d{number}", "shard": "s", "row": number, "window": 0, "windows": 1, "attempt": 1, "num_qas": 3,
        "start": 0, "end": 0, "paper_start": 0, "paper_end": 0, "prompt": "", "token_ids": ids, "opening": "",
        "prompt_tokens": len(ids), "truncated_tokens": 0, "max_tokens": max_tokens, "reason": None, "detail": None,
        **fields,
    }  # fmt: skip


def ids_of(length, seed=0):
    return torch.randint(2, 250, (length,), generator=torch.Generator().manual_seed(seed + length)).tolist()


def settings(name, **changes):
    return ModelSettings(**{"name": name, "cache_dir": "cache", "seq_len": 512, "dtype": "float32", **changes})


@pytest.fixture(scope="module")
def model(tiny_model):
    return CausalLM(settings(tiny_model, batch_tokens=2048))


@pytest.fixture(scope="module")
def reference(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def greedy(reference, ids, tokens):
    out = reference.generate(
        torch.tensor([ids]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=1
    )
    return out[0][len(ids) :].tolist()


@pytest.mark.parametrize("chunk", [16, 1024])
@pytest.mark.parametrize("max_batch", [1, 4, 16])
def test_greedy_equals_transformers(model, reference, chunk, max_batch, monkeypatch):
    """Chunks, slots that free up, moves of slots, growth of the cache: none may change a token."""
    monkeypatch.setattr(model, "chunk", chunk)
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), max_batch)
    prompts = [prompt(i, ids_of(n), max_tokens=20 + 30 * (i % 3)) for i, n in enumerate(LENGTHS)]
    for found, asked in zip(batcher.complete_all(prompts), prompts, strict=True):
        expected = greedy(reference, asked["token_ids"], asked["max_tokens"])
        assert found["output"] == model.tokenizer.decode(expected)
        assert (found["output_tokens"], found["finish_reason"]) == (asked["max_tokens"], "length")
    assert batcher.decoded_tokens == sum(p["max_tokens"] for p in prompts)


def test_sampling_does_not_depend_on_the_batch(model):
    prompts = [prompt(i, ids_of(n)) for i, n in enumerate(LENGTHS)]
    sampling = Sampling(0.8, 0.9, 7, min_tokens=1000)
    together = ContinuousBatcher(model, sampling, 8).complete_all(prompts)
    alone = [ContinuousBatcher(model, sampling, 1).complete_all([p])[0] for p in reversed(prompts)]
    assert [c["output"] for c in together] == [c["output"] for c in reversed(alone)]
    other = ContinuousBatcher(model, sampling, 8).complete_all([{**p, "attempt": 2} for p in prompts])
    assert all(a["output"] != b["output"] for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize(("new", "seen"), [(600, 600), (300, 700), (1, 257)])
def test_blockwise_bfloat16_attention_equals_a_dense_one(new, seen, window):
    """Across block borders, with earlier chunks in the cache, with and without a sliding window."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, new, 16, generator=generator).bfloat16()
    key, value = (torch.randn(1, 2, seen, 16, generator=generator).bfloat16() for _ in range(2))
    place, other = torch.arange(seen - new, seen)[:, None], torch.arange(seen)[None]
    visible = (other <= place) & (other > place - (window or seen))
    scores = query.float() @ key.float().repeat_interleave(3, 1).transpose(-1, -2) / 4
    dense = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value.float().repeat_interleave(3, 1)
    found = kv_cache._prefill_bf16_cpu(query, key, value, 0.25, window, kv_cache.Step(start=seen - new))
    assert torch.allclose(found.float(), dense.transpose(1, 2), atol=0.03)


def test_slots_grow_once_for_all_that_come(model, monkeypatch):
    """What a slot holds is copied when slots grow: prompts that wait together are given their room together."""
    grow, held = kv_cache.SlotCache.grow, []

    def watched(self, capacity, in_use):
        held.append(in_use)
        grow(self, capacity, in_use)

    monkeypatch.setattr(kv_cache.SlotCache, "grow", watched)
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 4)
    batcher.complete_all([prompt(i, ids_of(n), max_tokens=5) for i, n in enumerate([20, 90, 160, 230])])
    batcher.close()
    assert held == [0]


def test_the_model_runs_on_the_threads_of_its_actor(model, monkeypatch):
    """Also in the batcher's own thread, which has a number of threads of its own."""
    prefill, seen = CausalLM.prefill, []

    def watched(self, slot, ids, start=0):
        seen.append(torch.get_num_threads())
        return prefill(self, slot, ids, start)

    monkeypatch.setattr(CausalLM, "prefill", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 4)
        batcher.complete_all([prompt(0, ids_of(9), max_tokens=5)])
        batcher.close()
    finally:
        torch.set_num_threads(threads)
    assert seen == [3]


def test_out_of_memory_halves_the_batch_and_loses_nothing(model, reference, monkeypatch):
    decode, most = model.decode, []

    def scarce(tokens, lengths):
        most.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("scarce")
        return decode(tokens, lengths)

    monkeypatch.setattr(model, "decode", scarce)
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 8)
    prompts = [prompt(i, ids_of(n), max_tokens=20) for i, n in enumerate(LENGTHS)]
    done = batcher.complete_all(prompts)
    assert [c["output"] for c in done] == [
        model.tokenizer.decode(greedy(reference, p["token_ids"], 20)) for p in prompts
    ]
    assert batcher.max_batch == 2
    assert max(most) > 2


def test_a_prompt_that_does_not_fit_alone_is_answered_with_the_error(model, monkeypatch):
    prefill = CausalLM.prefill

    def scarce(self, slot, ids, start=0):
        if len(ids) > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return prefill(self, slot, ids, start)

    monkeypatch.setattr(CausalLM, "prefill", scarce)
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0), 4)
    done = batcher.complete_all([prompt(i, ids_of(n)) for i, n in enumerate(LENGTHS)])
    assert [c["reason"] is not None for c in done] == [n > 100 for n in LENGTHS]
    assert done[2]["reason"] == "engine_error"
    assert done[2]["detail"].startswith("out of memory")


def test_an_error_of_the_model_reaches_all_who_wait(model, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("kernel")

    monkeypatch.setattr(model, "decode", broken)
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 2)
    with batcher._wake:  # it begins when all are there
        futures = [batcher.submit(prompt(i, ids_of(9))) for i in range(4)]
    for future in futures:
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=30)
    with pytest.raises(RuntimeError, match="has stopped"):
        batcher.submit(prompt(9, ids_of(9)))


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "prefill_seconds", "began")} for row in rows]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prompt_without_finite_logits_is_an_error_and_the_others_are_answered(model, monkeypatch, value):
    prompts = [prompt(i, ids_of(n), max_tokens=12) for i, n in enumerate([20, 21, 150, 22])]
    sampling = Sampling(0.8, 0.9, 7, min_tokens=1000)
    expected = ContinuousBatcher(model, sampling, 4).complete_all(prompts)
    prefill, decode = model.prefill, model.decode

    def damaged_prefill(slot, ids, start=0):
        logits = prefill(slot, ids, start)
        logits[7] = value if len(ids) == 21 else logits[7]
        return logits

    def damaged_decode(tokens, lengths):
        logits = decode(tokens, lengths)
        logits[[n > 155 for n in lengths], 7] = value  # of the longest prompt, after some tokens
        return logits

    monkeypatch.setattr(model, "prefill", damaged_prefill)
    monkeypatch.setattr(model, "decode", damaged_decode)
    found = ContinuousBatcher(model, sampling, 4).complete_all(prompts)
    assert [failure_of(c) is not None for c in found] == [False, True, True, False]
    assert {failure_of(found[n]).detail for n in (1, 2)} == {f"model {model.name}: its logits are not finite"}
    assert [found[n]["output"] for n in (0, 3)] == [expected[n]["output"] for n in (0, 3)]


def test_a_model_without_finite_logits_ends_the_run(model, monkeypatch):
    monkeypatch.setattr(model, "prefill", lambda *_: torch.full((258,), float("nan")))
    batcher = ContinuousBatcher(model, Sampling(0.8, 0.9, 7), 4)
    with pytest.raises(ConfigError, match=r"its logits are not finite for 16 prompts in a row"):
        batcher.complete_all([prompt(i, ids_of(20)) for i in range(40)])


def test_another_attempt_starts_from_the_cached_prompt(model):
    """Three attempts in the slots of the first: what a prefill anew gives, without its cost."""
    sampling = Sampling(0.8, 0.9, 7, min_tokens=1000)
    asked = [prompt(i, ids_of(n)) for i, n in enumerate(LENGTHS)]
    batcher = ContinuousBatcher(
        model,
        sampling,
        3,
        lambda p, c: {**p, "attempt": p["attempt"] + 1} if p["attempt"] < 1 + p["row"] % 3 else None,
    )
    found = batcher.complete_all(asked)
    again = [{**p, "attempt": a} for p in asked for a in range(1, 2 + p["row"] % 3)]
    assert untimed(found) == untimed(ContinuousBatcher(model, sampling, 1).complete_all(again))
    assert batcher.prefilled_tokens == sum(LENGTHS)


def test_prompts_from_many_threads(model):
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 4)
    done = {}

    def ask(number):
        done[number] = batcher.complete_all([prompt(number, ids_of(LENGTHS[number]), max_tokens=15)])[0]["doi"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(LENGTHS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert done == {i: f"d{i}" for i in range(len(LENGTHS))}


@pytest.mark.parametrize(("tokens", "steps"), [(60, 4 + 59), (500, 49 + 499)])
def test_a_longer_prompt_joins_those_at_work_while_memory_allows(model, reference, monkeypatch, tokens, steps):
    """Prompts come in the order of their blocks, whose tasks may overtake one another."""
    batcher, late = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 4), []
    decode = model.decode

    def with_another(*args):
        if batcher.steps == 3:
            late.append(batcher.submit(prompt(9, ids_of(250), max_tokens=tokens)))
        return decode(*args)

    monkeypatch.setattr(model, "decode", with_another)
    first = batcher.complete_all([prompt(i, ids_of(20 + i), max_tokens=50) for i in range(2)])
    found = [late[0].result()[0], *first]
    assert batcher.steps == steps  # 750 places in each of four slots are too many: it waits until all have ended
    for completion, ids, count in zip(found, (ids_of(250), ids_of(20), ids_of(21)), (tokens, 50, 50), strict=True):
        assert completion["output"] == model.tokenizer.decode(greedy(reference, ids, count))


def test_a_closed_batcher_has_answered_all_and_takes_no_more(model):
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0, min_tokens=1000), 2)
    futures = [batcher.submit(prompt(i, ids_of(n), max_tokens=15)) for i, n in enumerate(LENGTHS)]
    batcher.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        batcher.submit(prompt(99, ids_of(5)))


def test_errors_and_prompts_without_room_come_back(model):
    batcher = ContinuousBatcher(model, Sampling(0.0, 1.0, 0), 2)
    done = batcher.complete_all([prompt(0, [], reason="over_length", detail="x"), prompt(1, ids_of(9), max_tokens=0)])
    assert [failure_of(c) for c in done] == [
        Failure("over_length", "x"),
        Failure("over_length", "no tokens left for the answer"),
    ]


def test_the_end_of_the_grammar_stops(model, monkeypatch):
    texts = "Q1: a\nA1: b\nQ2: c\nA2: d\nQ3: e\nA3: f\nQ4: too much"
    monkeypatch.setattr(ContinuousBatcher, "_text", lambda self, s: texts[: 2 * len(s.tokens)])
    done = ContinuousBatcher(model, Sampling(0.0, 1.0, 0), 1).complete_all([prompt(0, ids_of(9), max_tokens=200)])[0]
    if done["finish_reason"] != FinishReason.STOP:
        pytest.fail(f"ended by {done['finish_reason']}")
    assert done["output"] in (texts[: texts.index("\nQ4")], texts[: 2 * done["output_tokens"]])


def test_grouped_and_windowed_models(tmp_path):
    """Sliding-window layers see their window only: the self-check compares with transformers' own mask."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_tiny_model(tmp_path / "mistral")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=8, initializer_range=0.5,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    for dtype in ("float32", "bfloat16"):
        CausalLM(settings(folder, dtype=dtype, batch_tokens=512))


def test_a_model_that_the_cache_does_not_serve_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(causal_lm, "ATTENTION", "sdpa")  # as a model whose layers do not read the cache's slots
    with pytest.raises(ConfigError, match="cannot run this model"):
        CausalLM(settings(tiny_model))


def test_linear_rope_matches_transformers(tiny_model):
    """Factor 2 on positions beyond the model's own: the same logits as transformers with that config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_model)
    scale_rope(config, 2.0)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model, config=config, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = ids_of(900)
    model = CausalLM(settings(tiny_model, seq_len=1024, rope_factor=2.0))
    model.cache.shape(1, 1024)
    with torch.no_grad():
        wanted, unscaled = (m(torch.tensor([ids])).logits[0, -1] for m in (expected, plain))
    found = model.prefill(0, ids)
    assert torch.allclose(found, wanted, atol=1e-3)
    assert not torch.allclose(found, unscaled, atol=1e-1)
