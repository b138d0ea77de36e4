"""Model folders that no run can use: one line that names the model, on the driver if its files show it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from qaray.config import ConfigError, EvaluateConfig, GenerateConfig
from qaray.embedding.embed import _Embedding, settings
from qaray.engines.local.causal_lm import CausalLM, ModelSettings
from qaray.models.planner import plan_model
from qaray.models.weights import INDEX
from qaray.run.directory import Run
from qaray.run.tries import Tries

WEIGHTS = "model.safetensors"


def config_with(**values):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def shortened(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def removed(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def without_a_shard(folder):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def weights_with(change):
    def damage(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def nan_in_a_layer(weights):
    return {name: each * float("nan") if "layers.1.mlp" in name else each for name, each in weights.items()}


ON_THE_DRIVER = {
    "pickled": (pickled, r"only pickled weights \(pytorch_model.bin\)"),
    "no weights": (removed(WEIGHTS), "the folder has no weights"),
    "half the weights": (shortened(WEIGHTS), "incomplete metadata"),
    "empty weights": (written(WEIGHTS, b""), "header too small"),
    "a shard is missing": (without_a_shard, "model-1.safetensors is missing, which model.safetensors.index.json names"),
    "index of another shape": (written(INDEX, b"[1]"), "model "),
    "sizes of another type": (config_with(hidden_size="many"), "hidden_size"),
    "no heads": (config_with(num_attention_heads=0), "model "),
    "negative layers": (config_with(num_hidden_layers=-3), "num_hidden_layers must be at least 1, got -3"),
    "no context length": (config_with(max_position_embeddings=0), "no max_position_embeddings"),
    "RoPE of another type": (config_with(rope_parameters={"rope_type": "linear", "factor": "x"}), "config.json"),
    "unknown architecture": (config_with(model_type="nope"), "nope"),
    "a list as config": (written("config.json", b"[1, 2]"), "must be a mapping, not list"),
    "no tokenizer": (removed("tokenizer.json"), "no tokenizer could be loaded"),
    "half a tokenizer": (shortened("tokenizer.json"), "no tokenizer could be loaded"),
    "tokens of another type": (written("tokenizer_config.json", b'{"added_tokens_decoder": 7}'), "no tokenizer could"),
    "chat template": (written("chat_template.jinja", b"{% for %}"), "--prompt_template chat"),
}
ON_THE_WORKER = {
    "shapes": (config_with(hidden_size=128), r"has the shape \[258, 64\], config.json implies \[258, 128\] \(\d+ such"),
    "vocabulary": (config_with(vocab_size=64), r"config.json implies \[64, 64\] \(2 such weights\)"),
    "more layers": (config_with(num_hidden_layers=3), "9 weights are missing, such as model.layers.2"),
    "NaN": (weights_with(nan_in_a_layer), "its logits are not finite"),
}


def damaged(tiny_model, tmp_path, damage):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder)
    return str(folder)


@pytest.mark.parametrize("name", ON_THE_DRIVER)
def test_files_that_cannot_be_used_are_refused_by_the_driver(tiny_model, tmp_path, name):
    damage, words = ON_THE_DRIVER[name]
    model = damaged(tiny_model, tmp_path, damage)
    with pytest.raises(ConfigError, match=words) as refused:
        plan_model(GenerateConfig(file_path="-", output_dir="-", base_model=model, max_gen_len=64))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ON_THE_WORKER)
def test_weights_that_cannot_be_used_are_refused_by_the_worker(tiny_model, tmp_path, name):
    damage, words = ON_THE_WORKER[name]
    model = damaged(tiny_model, tmp_path, damage)
    with pytest.raises(ConfigError, match=f"model {model}: .*{words}") as refused:
        CausalLM(ModelSettings(model, "cache", seq_len=512, gpus=0, dtype="float32"))
    assert "\n" not in str(refused.value)


def test_more_context_than_memory_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="no memory for the keys and values of .*: lower --seq_len"):
        CausalLM(ModelSettings(tiny_model, "cache", seq_len=512, gpus=0, dtype="float32", batch_tokens=10**15))


@pytest.mark.parametrize("flag", ["context_size", "seq_len"])
def test_a_context_beyond_all_scaling_is_refused(tiny_model, flag):
    config = GenerateConfig(file_path="-", output_dir="-", base_model=tiny_model, max_gen_len=64, **{flag: 10**9})
    with pytest.raises(ConfigError, match=r"lower --(context_size|seq_len)"):
        plan_model(config)


def test_an_endpoints_tokenizer_needs_no_weights(tiny_model, tmp_path):
    model = damaged(tiny_model, tmp_path, removed(WEIGHTS))
    served = {"engine": "http", "base_url": "http://h:1/v1"}
    plan_model(GenerateConfig(file_path="-", output_dir="-", base_model=model, max_gen_len=64, **served))


def test_an_embedding_model_without_finite_vectors_is_refused_by_the_first_call(tmp_path):
    """Ray would report an error of the actor's constructor as the text of a traceback."""
    from qaray.models.catalogue import resolve

    folder = shutil.copytree(resolve("bundled:minilm", "cache"), tmp_path / "model")
    weights = {n: each * float("nan") if "layer.0" in n else each for n, each in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = replace(settings(EvaluateConfig(output_dir="-", engine="echo")), name=str(folder))
    actor = _Embedding(config, lambda: False, Tries.of(Run.at(str(tmp_path))))
    with pytest.raises(ConfigError, match="embedding_model .*: its vectors are not finite"):
        actor(None)
