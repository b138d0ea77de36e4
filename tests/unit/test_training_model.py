"""The model to train: embeddings of new tokens and initial LoRA weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qaray.config import ConfigError, FineTuneConfig
from qaray.finetune.arguments import training_arguments
from qaray.finetune.callback import RunCallback
from qaray.finetune.loop import make_trainer
from qaray.finetune.model import grow_embeddings, load_model
from tests.conftest import save_tiny_model
from tests.training import small_settings, write_shard

VOCABULARY = 258  # tokens of the tiny model; [PAD] and <unk> are added as 258 and 259
ADDED = [258, 259]


def settings(model, **values):
    return FineTuneConfig(**{"model_name_or_path": model, "data_path": "-", "output_dir": "-", **values})


def padded_model(folder, rows, tied=False):
    """A tiny model with ``rows`` embeddings; those beyond the vocabulary are far from all others."""
    path = save_tiny_model(folder, vocab_size=rows, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[VOCABULARY:] = 1000.0
    model.save_pretrained(path)
    return path


def embeddings(model):
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


@pytest.mark.parametrize("training", [True, False], ids=["training", "export"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rows", [258, 259, 260, 300])
def test_new_tokens_begin_as_the_mean_of_the_vocabulary(tmp_path, rows, tied, training):
    """Whether the matrix has no padding rows, too few, just enough or too many."""
    path = padded_model(tmp_path / "model", rows, tied)
    before = embeddings(AutoModelForCausalLM.from_pretrained(path))
    model = load_model(settings(path), 1.0, torch.float32, training=training)
    after = embeddings(model)
    assert model.config.vocab_size == max(rows, 260)
    assert (after[0].data_ptr() == after[1].data_ptr()) == tied
    for old, new in zip(before, after, strict=True):
        assert len(new) == max(rows, 260)
        assert torch.equal(new[:VOCABULARY], old[:VOCABULARY])
        torch.testing.assert_close(new[ADDED], old[:VOCABULARY].mean(dim=0).expand(2, -1))
        assert torch.equal(new[260:], old[260:])


@pytest.mark.parametrize(
    ("values", "words"),
    [({"num_hidden_layers": 3}, "weights are missing, such as model.layers.2"), ({"hidden_size": 128}, "size")],
    ids=["missing", "misshapen"],
)
def test_random_weights_are_not_trained(tmp_path, values, words):
    """transformers fills what a file lacks with random numbers."""
    path = Path(save_tiny_model(tmp_path / "model"))
    described = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**described, **values}))
    with pytest.raises(ConfigError, match=words):
        load_model(settings(str(path)), 1.0, torch.float32)


def small_model(rows, bias=False):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes))
    if bias:
        model.lm_head = torch.nn.Linear(8, rows)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [5, 12])
def test_the_bias_of_the_output_layer_grows_too(rows, dtype):
    model = small_model(rows, bias=True).to(dtype)
    expected = model.lm_head.bias[:5].float().mean().to(dtype)
    grow_embeddings(model, range(5), [5, 6])
    assert model.lm_head.bias[5:7].tolist() == [expected] * 2
    expected = model.lm_head.weight[:5].float().mean(dim=0).to(dtype)
    assert torch.equal(model.lm_head.weight[5:7], expected.expand(2, -1))


@pytest.mark.parametrize(
    ("rows", "known", "added", "mean_of", "set_to_mean"),
    [
        (10, [0, 1, 5], [6], [0, 1, 5], [6]),  # ids of a vocabulary may have gaps
        (10, [0, 1, 5], [], [0, 1, 5], []),  # nothing is added: padding rows stay
        (4, [0, 1, 5], [6], [0, 1], [4, 5, 6]),  # the model lacks rows even of known tokens
        (4, [0, 1, 5], [], [0, 1], [4, 5]),
    ],
)
def test_rows_are_found_by_token_id(rows, known, added, mean_of, set_to_mean):
    model = small_model(rows)
    before = [weight.clone() for weight in embeddings(model)]
    grow_embeddings(model, known, added)
    for old, new in zip(before, embeddings(model), strict=True):
        assert len(new) == max(rows, *(token + 1 for token in known + added))
        for row in set_to_mean:
            torch.testing.assert_close(new[row], old[mean_of].mean(dim=0))
        for row in set(range(rows)) - set(set_to_mean):
            assert torch.equal(new[row], old[row])


def initial_adapters(folder, model, seed):
    """LoRA's weights in the trainer that the training loop makes for --seed."""
    own = small_settings(folder, model, write_shard(folder / "train", [([2, 3, 4], 1)]), seed=seed)
    own = replace(own, config=FineTuneConfig(**{**own.config.values(), "low_rank_training": True}))
    arguments = training_arguments(own.flags, str(folder), None, use_cpu=True)
    trainer = make_trainer(own, arguments, RunCallback(own))
    return {name: weight.detach() for name, weight in trainer.model.named_parameters() if "lora_" in name}


def test_the_seed_decides_on_the_first_weights_of_lora(tmp_path, tiny_model):
    first, again, other = (
        initial_adapters(tmp_path / str(run), tiny_model, seed) for run, seed in enumerate((1, 1, 2))
    )
    assert len(first) == 2 * 2 * 4  # A and B, layers, projections
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, other[name]) == ("lora_B" in name)
        assert bool(weight.any()) == ("lora_A" in name)
