"""DeepSpeed's JSON against the flags; every shipped one is read."""

import json
import re

import pytest

from qaray.config import ConfigError
from qaray.finetune.deepspeed import read_config
from qaray.finetune.flags import normal, training_arguments
from tests.conftest import ROOT, SHARED

ZERO = {"zero_optimization": {"stage": 2}}
FLAGS = {"lr_scheduler_type": "constant_with_warmup", "gradient_accumulation_steps": "8"}


def arguments(tmp_path, **flags):
    return training_arguments(normal({**FLAGS, **flags}), str(tmp_path), None, use_cpu=True)


@pytest.mark.parametrize("file", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda file: file.name)
def test_shipped_files_are_read_and_accepted_by_deepspeed(file, tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig

    plan = read_config(str(file), arguments(tmp_path), set(FLAGS), workers=8)
    assert plan.stage == (2 if "stage2" in file.name else 3)
    numbers = json.loads(json.dumps(plan.config).replace('"auto"', "1"))
    for block in ("bf16", "fp16"):
        numbers.pop(block, None)
    numbers["train_batch_size"] = 1
    assert DeepSpeedConfig(numbers).zero_optimization_stage == plan.stage


def test_stage3_is_the_seeds():
    readme = SHARED.parent / "seed" / "seed_readme.md"
    if not readme.exists():
        pytest.skip("the specification is not on this machine")
    block = re.search(r"Deepspeed stage 3 parameters\n```\n(.*?)```", readme.read_text(), re.S)[1]
    assert json.loads((ROOT / "ds_configs" / "stage3.json").read_text()) == json.loads(block)


def test_a_typed_scheduler_beats_the_files(tmp_path):
    file = str(ROOT / "ds_configs" / "stage3.json")
    plan = read_config(file, arguments(tmp_path), {"lr_scheduler_type"}, 1)
    assert "scheduler" not in plan.config
    assert len(plan.notes) == 1
    assert "scheduler" in read_config(file, arguments(tmp_path), set(), 1).config
    linear = read_config(file, arguments(tmp_path, lr_scheduler_type="linear"), {"lr_scheduler_type"}, 1)
    assert "scheduler" in linear.config
    assert linear.notes == ()


@pytest.mark.parametrize(
    "block", [{"train_batch_size": 7}, {"gradient_accumulation_steps": 2}, {"train_micro_batch_size_per_gpu": 2}]
)
def test_another_batch_size_is_refused(tmp_path, block):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({**ZERO, **block}))
    with pytest.raises(ConfigError, match=next(iter(block))):
        read_config(str(file), arguments(tmp_path), set(), workers=2)


def test_the_batch_size_that_follows_from_the_flags_is_accepted(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({**ZERO, "train_batch_size": 8 * 8 * 2}))
    assert read_config(str(file), arguments(tmp_path, per_device_train_batch_size="8"), set(), 2).stage == 2


@pytest.mark.parametrize("block", [{}, {"zero_optimization": {"stage": 0}}, {"zero_optimization": []}])
def test_a_file_without_zero_is_refused(tmp_path, block):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(block))
    with pytest.raises(ConfigError, match="zero_optimization"):
        read_config(str(file), arguments(tmp_path), set(), workers=2)


def test_flags_of_the_trainer(tmp_path):
    made = arguments(tmp_path, evaluation_strategy="no", tf32="False", warmup_steps="20")
    assert made.eval_strategy == "no"
    assert made.warmup_steps == 20
    assert made.gradient_checkpointing
    for flags, message in (({"nonsense": "1"}, "--nonsense"), ({"resume_from_checkpoint": "x"}, "resumes by itself")):
        with pytest.raises(ConfigError, match=message):
            normal(flags)
    with pytest.raises(ConfigError, match="learning_rate"):
        arguments(tmp_path, learning_rate="hot")
