"""The model under ZeRO-3, on one gloo process: what changes its weights before training must gather them."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import python_path
from tests.unit.test_training_model import ADDED, VOCABULARY, embeddings, padded_model

LOAD = """
import sys
import deepspeed, torch
from transformers import set_seed
from transformers.integrations import HfDeepSpeedConfig
from qaray.config import FineTuneConfig
from qaray.finetune.loop import use_own_ninja
from qaray.finetune.model import load_model

use_own_ninja()
*paths, out = sys.argv[1:]
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed("gloo", verbose=False)
zero = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
loaded = {}
for path in paths:
    config = FineTuneConfig(model_name_or_path=path, data_path="-", output_dir="-", low_rank_training=True)
    loaded[path] = []
    for seed in (1, 1, 2):
        set_seed(seed)
        model = load_model(config, 1.0, torch.float32)
        layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
        named = {name: layer.weight for name, layer in layers.items()}
        named |= {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
        weights = {}
        for name, parameter in named.items():
            partitioned = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters(parameter, enabled=partitioned):
                weights[name] = (partitioned, parameter.detach().clone())
        loaded[path].append(weights)
torch.save(loaded, out)
"""
ROWS = (300, 259)  # of the embeddings: padding, fewer than are needed


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """By rows of the embeddings: the model's folder, and per seed 1, 1, 2 name → (partitioned, the whole weight)."""
    folder = tmp_path_factory.mktemp("zero3")
    paths = [padded_model(folder / str(rows), rows) for rows in ROWS]
    found = load_under_zero3(paths, folder / "weights.pt")
    return {rows: (path, found[path]) for rows, path in zip(ROWS, paths, strict=True)}


def load_under_zero3(paths, out):
    environment = {**os.environ, "PYTHONPATH": python_path(), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *paths, out], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out)


@pytest.mark.parametrize("rows", ROWS, ids=["padding", "resized"])
def test_new_tokens_and_lora_begin_as_they_do_without_zero3(loaded, rows):
    """Where no resize is needed, the embeddings are partitioned; a resized matrix is whole."""
    path, (first, again, other) = loaded[rows]
    before = embeddings(AutoModelForCausalLM.from_pretrained(path))
    for name, old in zip(("input", "output"), before, strict=True):
        partitioned, new = first[name]
        assert partitioned == (rows == 300)
        assert len(new) == max(rows, 260)
        assert torch.equal(new[:VOCABULARY], old[:VOCABULARY])
        torch.testing.assert_close(new[ADDED], old[:VOCABULARY].mean(dim=0).expand(2, -1))
        assert torch.equal(new[260:], old[260:])
    adapters = {name: weight for name, (_, weight) in first.items() if "lora_" in name}
    assert len(adapters) == 2 * 2 * 4
    for name, weight in adapters.items():
        assert torch.equal(weight, again[name][1])
        assert torch.equal(weight, other[name][1]) == ("lora_B" in name)
        assert bool(weight.any()) == ("lora_A" in name)
