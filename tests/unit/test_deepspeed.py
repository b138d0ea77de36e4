"""DeepSpeed's JSON against the flags and against DeepSpeed; every shipped file is accepted."""

import json
import re

import pytest

from qaray.config import ConfigError
from qaray.finetune.arguments import checked_arguments
from qaray.finetune.deepspeed import read_config
from qaray.finetune.flags import normal
from tests.conftest import ROOT, SHARED

ADAM = {"type": "AdamW", "params": {"lr": "auto"}}
DECAY = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}}
WIDTH = 64


def zero(**more):
    return {"zero_optimization": {"stage": 2, **more}}


def read(tmp_path, config, workers=1, **flags):
    """The plan for a file with this content and for these flags."""
    file = tmp_path / "ds.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return read_config(str(file), arguments(**flags), set(normal(flags)), workers, WIDTH)


def arguments(**flags):
    return checked_arguments(normal(flags), has_eval_data=False)


@pytest.mark.parametrize("file", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda file: file.name)
def test_shipped_files_are_accepted_as_they_are(file):
    """By transformers' and DeepSpeed's own validation; tests/train trains a step with each."""
    flags = {"gradient_accumulation_steps": "8", "bf16": "True"}
    plan = read_config(str(file), arguments(**flags), set(flags), workers=8, hidden_size=WIDTH)
    assert plan.stage == (2 if "stage2" in file.name else 3)
    assert plan.notes == ()
    plan.check(arguments(**flags), steps=100)


def test_stage3_is_the_seeds():
    readme = SHARED.parent / "seed" / "seed_readme.md"
    if not readme.exists():
        pytest.skip("the specification is not on this machine")
    block = re.search(r"Deepspeed stage 3 parameters\n```\n(.*?)```", readme.read_text(), re.S)[1]
    assert json.loads((ROOT / "ds_configs" / "stage3.json").read_text()) == json.loads(block)


@pytest.mark.parametrize(
    ("scheduler", "flag", "kept", "note"),
    [
        (DECAY, None, True, ""),
        (
            DECAY,
            "constant_with_warmup",
            False,
            "sets the scheduler WarmupDecayLR but the flags set constant_with_warmup",
        ),
        (DECAY, "linear", False, "WarmupDecayLR, whose warm-up is logarithmic, but the flags set linear"),
        ({**DECAY, "params": {**DECAY["params"], "warmup_type": "linear"}}, "linear", True, ""),
        ({"type": "WarmupLR", "params": {"warmup_type": "log"}}, "constant_with_warmup", False, "is logarithmic"),
    ],
)
def test_a_typed_scheduler_beats_the_files(tmp_path, scheduler, flag, kept, note):
    flags = {"lr_scheduler_type": flag} if flag else {}
    plan = read(tmp_path, {**zero(), "scheduler": scheduler}, **flags)
    assert ("scheduler" in plan.config) == kept
    assert note in " ".join(plan.notes)
    assert bool(plan.notes) == (not kept)


REFUSED = [
    # the file against the flags: the key, its value, the flag and its value
    (
        zero() | {"gradient_accumulation_steps": 2},
        {},
        "gradient_accumulation_steps is 2 but --gradient_accumulation_steps gives 1",
    ),
    (
        zero() | {"train_micro_batch_size_per_gpu": 2},
        {},
        "train_micro_batch_size_per_gpu is 2 but --per_device_train_batch_size gives 8",
    ),
    (
        zero() | {"train_batch_size": 7},
        {},
        "train_batch_size is 7 but --per_device_train_batch_size · --gradient_accumulation_steps · --num_workers is "
        "8 · 1 · 1 = 8",
    ),
    (zero() | {"gradient_clipping": 0.5}, {}, "gradient_clipping is 0.5 but --max_grad_norm gives 1.0"),
    (
        zero() | {"gradient_clipping": 0.5},
        {"max_grad_norm": "2"},
        "gradient_clipping is 0.5 but --max_grad_norm gives 2.0",
    ),
    (
        zero() | {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}},
        {"learning_rate": "2e-5"},
        "optimizer.params.lr is 0.0001 but --learning_rate gives 2e-05",
    ),
    (
        zero() | {"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}},
        {},
        "optimizer.params.betas is [0.9, 0.95] but --adam_beta1 and --adam_beta2 give [0.9, 0.999]",
    ),
    (zero() | {"bf16": {"enabled": True}}, {}, "bf16.enabled is True but --bf16 gives False"),
    (zero() | {"bf16": {"enabled": False}}, {"bf16": "True"}, "bf16.enabled is False but --bf16 gives True"),
    (zero() | {"fp16": {"enabled": True}}, {"bf16": "True"}, "fp16.enabled is True but --fp16 gives False"),
    (zero() | {"optimizer": ADAM}, {"optim": "adafactor"}, "optimizer.type is AdamW but --optim gives adafactor"),
    # misspelled keys and values, wherever they are
    (zero() | {"gradient_cliping": 1.0}, {}, "unknown key gradient_cliping (similar: gradient_clipping)"),
    (zero(overlap_com=True), {}, "unknown key zero_optimization.overlap_com"),
    (
        zero(offload_optimizer={"device": "cpu", "pin_memry": True}),
        {},
        "unknown key zero_optimization.offload_optimizer.pin_memry",
    ),
    (zero(reduce_bucket_size="large"), {}, 'zero_optimization.reduce_bucket_size is "large"'),
    (
        zero() | {"optimizer": {"type": "AdamW", "params": {"learning_rate": 1e-4}}},
        {},
        "unknown key optimizer.params.learning_rate",
    ),
    (zero() | {"optimizer": {"type": "AdamWW"}}, {}, "optimizer.type is 'AdamWW': choose AdamW"),
    (zero() | {"optimizer": {"params": {"lr": "auto"}}}, {}, "optimizer.type is None"),
    (zero() | {"scheduler": {"type": "WarmupDecay"}}, {}, "scheduler.type is 'WarmupDecay': choose from"),
    (
        zero() | {"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 5}}},
        {},
        "unknown key scheduler.params.warmup_steps (similar: scheduler.params.warmup_num_steps)",
    ),
    # what DeepSpeed refuses late
    (
        zero(allgather_bucket_size="auto"),
        {},
        'zero_optimization.allgather_bucket_size is "auto", for which no flag has a value',
    ),
    (
        zero(offload_optimizer={"device": "nvme"}) | {"optimizer": ADAM},
        {},
        "zero_optimization.offload_optimizer.nvme_path is missing",
    ),
    (
        zero(offload_optimizer={"device": "cpu"}),
        {"optim": "adafactor"},
        "zero_optimization.offload_optimizer uses DeepSpeed's CPU AdamW, but --optim gives adafactor",
    ),
    (zero() | {"bf16": {"enabled": True}, "fp16": {"enabled": True}}, {"bf16": "True"}, "fp16.enabled is True"),
    (zero() | {"optimizer": {"type": "SGD"}}, {}, 'takes only with "zero_allow_untested_optimizer": true'),
    (
        zero() | {"optimizer": {"type": "AdamW", "parms": {}}},
        {},
        "unknown key optimizer.parms (similar: optimizer.params)",
    ),
    (zero() | {"optimizer": {"type": "AdamW", "params": {"lr": None}}}, {}, "optimizer.params.lr is "),
    (zero() | {"scheduler": {"type": "OneCycle"}}, {}, "scheduler.params.cycle_min_lr is missing"),
    (zero() | {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cubic"}}}, {}, "choose log or linear"),
    (zero() | {"tensor_parallel": {"autotp_size": 2}}, {}, "tensor_parallel.autotp_size is 2: training here is"),
    (zero() | {"sequence_parallel_size": 2}, {}, "sequence_parallel_size is set: training here is data-parallel"),
    (zero() | {"wandb": {"enabled": True}}, {}, "wandb.enabled is true, but the package wandb is not installed"),
    (zero() | {"sparse_gradients": False}, {}, "sparse_gradients"),
    # no configuration
    ({}, {}, "the block zero_optimization is missing"),
    ({"zero_optimization": {"stage": 0}}, {}, "zero_optimization.stage must be 1, 2 or 3, got 0"),
    ({"zero_optimization": []}, {}, "zero_optimization must be an object"),
    ({"zero_optimization": {"stage": "3"}}, {}, 'stage must be 1, 2 or 3, got "3"'),
    (zero() | {"optimizer": "AdamW"}, {}, "optimizer must be an object"),
    (zero() | {"fp16": True}, {}, "fp16 must be an object, got true"),
    (zero() | {"gradient_clipping": "1.0"}, {}, 'gradient_clipping is the text "1.0": write the number without quotes'),
    ("[" * 3000, {}, "not valid JSON"),
    (zero() | {"a\nb": 1}, {}, "unknown key a b"),
    ([], {}, "must be a JSON object"),
    ('{"zero_optimization": {"stage": 2},}', {}, "not valid JSON"),
    (
        '{"zero_optimization": {"stage": 2}, "zero_optimization": {"stage": 3}}',
        {},
        "the key zero_optimization occurs twice",
    ),
]


@pytest.mark.parametrize(("config", "flags", "message"), REFUSED, ids=[message[:60] for _, _, message in REFUSED])
def test_refused_on_the_driver_with_the_key_and_both_values(tmp_path, config, flags, message):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, config, **flags)
    text = str(refused.value)
    assert text.startswith(f"--deepspeed {tmp_path}/ds.json: ")
    assert message in text
    assert len(text.splitlines()) == 1
    assert "easiest" not in text


def test_all_differences_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps is 4 .*; gradient_clipping is 3 "):
        read(tmp_path, zero() | {"gradient_accumulation_steps": 4, "gradient_clipping": 3})


def test_what_agrees_is_accepted(tmp_path):
    agreeing = {
        "train_batch_size": 8 * 8 * 2, "gradient_clipping": 1.0, "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}},
    }  # fmt: skip
    flags = {"gradient_accumulation_steps": "8", "bf16": "True"}
    plan = read(tmp_path, zero() | agreeing, workers=2, **flags)
    assert plan.config["bf16"]["enabled"] == "auto"  # a worker without bfloat16 trains in float32


ACCEPTED = [
    zero(offload_optimizer={"device": "cpu", "pin_memory": True}),  # accelerate takes DeepSpeed's CPU AdamW
    zero(stage3_gather_16bit_weights_on_model_save="auto", stage=3),
    zero() | {"optimizer": ADAM, "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_type": "linear"}}},
    zero() | {"optimizer": ADAM, "scheduler": {"type": "WarmupCosineLR"}},
    zero() | {"optimizer": {"type": "Lion"}},
    zero() | {"zero_allow_untested_optimizer": True, "optimizer": {"type": "SGD", "params": {"momentum": 0.9}}},
    zero() | {"fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
                       "hysteresis": 2, "min_loss_scale": 1}},
    zero(reduce_scatter=True, allgather_partitions=True, round_robin_gradients=True) | {"steps_per_print": 10},
]  # fmt: skip


@pytest.mark.parametrize("config", ACCEPTED, ids=lambda config: json.dumps(config)[-60:])
def test_what_works_is_accepted(tmp_path, config):
    read(tmp_path, config, learning_rate="2e-5", warmup_steps="5", weight_decay="0.1")


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        ({"max_grad_norm": "2"}, lambda config: config["gradient_clipping"]),
        ({"learning_rate": "2e-5"}, lambda config: config["optimizer"]["params"]["lr"]),
        ({"weight_decay": "0.1"}, lambda config: config["optimizer"]["params"]["weight_decay"]),
        ({"adam_beta2": "0.95"}, lambda config: config["optimizer"]["params"]["betas"]),
        ({"warmup_steps": "5"}, lambda config: config["scheduler"]["params"]["warmup_num_steps"]),
        ({}, lambda config: config["scheduler"]["params"]["total_num_steps"]),
    ],
)
def test_a_flag_reaches_a_block_that_leaves_its_key_out(tmp_path, flags, place):
    config = zero() | {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupDecayLR"}}
    assert place(read(tmp_path, config, **flags).config) == "auto"
    assert "gradient_clipping" not in read(tmp_path, config).config


def test_the_number_of_steps_is_checked_once_it_is_known(tmp_path):
    schedule = {**DECAY, "params": {"total_num_steps": 500, "warmup_num_steps": "auto"}}
    plan = read(tmp_path, zero() | {"optimizer": ADAM, "scheduler": schedule})
    plan.check(arguments(), steps=500)
    with pytest.raises(ConfigError, match="total_num_steps is 500 but the flags and the examples give 30: set it to"):
        plan.check(arguments(), steps=30)
