"""The model card: what it says with all facts and with few, and that it names no folder of this machine."""

import ast
import hashlib
import json
import math
import re

import pytest
import yaml
from transformers import TrainingArguments

from qaray.asking.templates import LLAMA2, Template
from qaray.finetune.card import _code, _fenced, data_facts, model_card, training_facts
from qaray.models.contract import Contract

CONFIG = {
    "model_name_or_path": "acme/reader-7b", "low_rank_training": False, "use_full_attn": False, "s2_group_size": None,
    "trainable_params": "embed,norm", "lora_r": 8, "lora_alpha": 16, "cache_dir": "/home/ada/cache",
}  # fmt: skip
FEW = {"config": CONFIG, "rope_factor": 4.0, "deepspeed": True, "world_size": 4}
FILE = {"file": "a/train.json", "sha256": "ab" * 32, "bytes": 12345}
COUNTS = {"examples": 1000, "tokens": 2000000, "answer_tokens": 30000, "rejected": 2, "truncated": 1}
ALL = {
    **FEW,
    "zero_stage": 3,
    "arguments": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 2e-5,
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "optim": "adamw_torch", "num_train_epochs": 3.0, "max_steps": -1, "bf16": True, "fp16": False, "seed": 42,
    },
    "data": {
        "train": [FILE], "eval": [{**FILE, "file": "held.json", "sha256": "cd" * 32}],
        "counts": {"train": COUNTS, "eval": {**COUNTS, "examples": 24}},
    },
    "versions": {"python": "3.11.9", "torch": "2.13.0", "vllm": None},
}  # fmt: skip
STATE = {
    "global_step": 47, "epoch": 3.0,
    "log_history": [
        {"step": 0, "eval_loss": 2.5}, {"step": 1, "loss": 3.25}, {"step": 47, "loss": 0.5},
        {"step": 47, "eval_loss": 0.75},
    ],
}  # fmt: skip


def contract(text=LLAMA2, name="llama2", **more):
    return Contract(
        template_name=name, template_text=text, template_sha256=Template(name, text).sha256, context_size=12288,
        rope_factor=4.0, **more,
    ).model_dump()  # fmt: skip


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


def test_a_card_with_all_facts():
    card = model_card({**ALL, "contract": contract()}, STATE)
    assert front_matter(card) == {
        "base_model": "acme/reader-7b", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["qaray"],
    }  # fmt: skip
    for line in (
        "- Context: 12,288 tokens, prompt and answer together",
        "- RoPE factor: 4",
        "- Attention in training: S²-Attn (LongLoRA); in inference, attention is full",
        "- All parameters were trained",
        "- DeepSpeed ZeRO stage 3",
        "- Global batch: 64 examples (2 per process × 8 accumulated × 4 processes)",
        "- Learning rate: 2e-05, constant_with_warmup, warm-up 20, weight decay 0, optimizer adamw_torch",
        "- Precision: bfloat16",
        "- Seed: 42",
        "- Optimizer steps: 47, 3 epochs",
        "- Versions: python 3.11.9, torch 2.13.0",
        f"- `a/train.json`: SHA-256 `{'ab' * 32}`, 12,345 bytes",
        "- 1,000 examples, 2,000,000 tokens (30,000 with loss); 2 records rejected, 1 examples truncated",
        f"- `held.json`: SHA-256 `{'cd' * 32}`, 12,345 bytes",
        "| training, first | 1 | 3.2500 | 25.79 |",
        "| training, last | 47 | 0.5000 | 1.65 |",
        "| held-out, before | 0 | 2.5000 | 12.18 |",
        f"| held-out, after | 47 | 0.7500 | {math.exp(0.75):.2f} |",
        "vllm serve MODEL_FOLDER --max-model-len 12288",
        "qaray generate --base_model MODEL_FOLDER --file_path PAPERS --output_dir OUT",
    ):
        assert line in card.splitlines(), line
    assert f"```\n{LLAMA2}\n```" in card
    assert "/home" not in card


def test_a_card_of_an_old_checkpoint_leaves_the_unknown_out():
    card = model_card({**FEW, "contract": contract()}, {})
    for word in ("None", "Losses", "SHA-256 `a", "Seed", "Global batch", "Versions", "ZeRO stage", "Training data"):
        assert word not in card
    assert "## Prompt template" in card


def test_low_rank_full_attention_and_a_request():
    config = {**CONFIG, "low_rank_training": True, "use_full_attn": True}
    request = {"request_text": "Ask about {paper} as {format}.", "request_language": "de", "request_sha256": "12"}
    card = model_card({**FEW, "config": config, "contract": contract(**request)}, {})
    assert front_matter(card)["tags"] == ["qaray", "lora"]
    assert front_matter(card)["language"] == ["de"]
    assert "- Attention in training: full;" in card
    assert (
        "- LoRA on q, k, v and o, rank 8, alpha 16, merged into the weights; trained in full: parameters named" in card
    )
    assert "```\nAsk about {paper} as {format}.\n```" in card
    assert "fixes the prompt template, the request, the RoPE factor" in card


@pytest.mark.parametrize(
    ("model", "name", "hub_id"),
    [
        ("acme/reader-7b", "acme/reader-7b", "acme/reader-7b"),
        ("gpt2", "gpt2", "gpt2"),
        ("/home/ada/models/reader 7b/", "reader 7b", None),
        ("./models/reader", "reader", None),
        ("bundled:smollm2-135m", "smollm2-135m", None),
    ],
)
def test_a_local_base_model_appears_by_its_name_and_not_as_a_hub_id(model, name, hub_id):
    card = model_card({**FEW, "config": {**CONFIG, "model_name_or_path": model}, "contract": contract()}, {})
    assert front_matter(card).get("base_model") == hub_id
    assert f"# {name}, fine-tuned with qaray\n" in card
    assert f"- Base model: `{name}`\n" in card
    assert "ada" not in card


def test_fences_are_longer_than_those_in_the_text():
    text = "{instruction}\n````python\n{input}\n````"
    card = model_card({**FEW, "contract": contract(text, "file")}, {})
    assert f"`````\n{text}\n`````" in card
    assert _fenced("a", "shell") == "```shell\na\n```"
    assert [_code(each) for each in ("a", "a`b", "`a")] == ["`a`", "``a`b``", "`` `a ``"]


@pytest.mark.parametrize("adds_special", [True, False])
def test_the_python_example_is_python(adds_special):
    card = model_card({**FEW, "contract": contract()}, {}, adds_special)
    script = re.search(r"```python\n(.*?)\n```", card, re.S)[1]
    ast.parse(script)
    assert ("add_special_tokens=False" in script) is not adds_special
    assert ('`"add_special_tokens": false`' in card) is not adds_special


@pytest.mark.parametrize(
    ("deepspeed", "stage", "optimizer", "schedule"),
    [
        (None, None, "adamw_torch", "linear"),
        ({"zero_optimization": {"stage": 2}}, 2, "adamw_torch", "linear"),
        (
            {"zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupDecayLR"}},
            3, "AdamW", "WarmupDecayLR",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_records_what_trained_with_deepspeed_before_the_flags(deepspeed, stage, optimizer, schedule):
    facts = training_facts(TrainingArguments(optim="adamw_torch", use_cpu=True, seed=7), deepspeed, {"train": [FILE]})
    found = facts["arguments"]
    assert (facts["zero_stage"], found["optim"], found["lr_scheduler_type"]) == (stage, optimizer, schedule)
    assert (found["seed"], found["learning_rate"]) == (7, 5e-5)
    assert facts["data"] == {"train": [FILE]}
    json.dumps(facts)


def test_hashes_are_those_of_the_files(tmp_path):
    for name, content in (("a/x.json", b"[1]"), ("b.jsonl", b"{}\n" * 3)):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    found = data_facts(str(tmp_path / "data"))
    assert found == [
        {"file": "a/x.json", "sha256": hashlib.sha256(b"[1]").hexdigest(), "bytes": 3},
        {"file": "b.jsonl", "sha256": hashlib.sha256(b"{}\n" * 3).hexdigest(), "bytes": 9},
    ]
    assert data_facts(str(tmp_path / "data" / "b.jsonl")) == [found[1]]
