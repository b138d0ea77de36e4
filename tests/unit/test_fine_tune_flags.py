"""Flags of a fine-tuning as users type them: accepted, or refused in one line before anything starts."""

import json

import pytest

from qaray.config import ConfigError, FineTuneConfig, SubmitConfig
from qaray.finetune.arguments import check_cpu, checked_arguments, for_cpu, precision_notes, steps_of
from qaray.finetune.driver import check_checkpoint, decide
from qaray.finetune.flags import normal
from qaray.finetune.loop import TRAINING
from qaray.observe.submit import submit
from qaray.run.directory import identity_hash
from tests.conftest import ROOT

STAGE3 = str(ROOT / "ds_configs" / "stage3.json")
NOT_SUPPORTED = "is not supported: "
SETS = [
    # what the original's users type
    ("--bf16 True --use_flash_attn True --low_rank_training False --num_train_epochs 15", None),
    ("--evaluation_strategy no --save_strategy steps --save_steps 500 --save_total_limit 2", None),
    ("--lr_scheduler_type constant_with_warmup --logging_steps 1 --tf32 False --warmup_steps 20", None),
    (
        f"--deepspeed {STAGE3} --per_device_train_batch_size 1 --gradient_accumulation_steps 8 --learning_rate 2e-5",
        None,
    ),
    ("--overwrite_output_dir True --logging_dir logs --save_safetensors True --do_train True", None),
    ("--model_type llama", f"--model_type {NOT_SUPPORTED}the model's config.json names its type"),
    ("--peft_model adapter", f"--peft_model {NOT_SUPPORTED}`qaray export CHECKPOINT FOLDER` merges"),
    ("--nproc_per_node 8", f"--nproc_per_node {NOT_SUPPORTED}Ray starts the training processes: --num_workers"),
    ("--master_port 29500", f"--master_port {NOT_SUPPORTED}Ray starts and connects"),
    ("--local_rank 1", f"--local_rank {NOT_SUPPORTED}Ray Train numbers the processes"),
    ("--context_size 8192", f"--context_size {NOT_SUPPORTED}use --model_max_length"),
    ("--flash_attn True", f"--flash_attn {NOT_SUPPORTED}use --use_flash_attn"),
    ("--base_model llama", f"--base_model {NOT_SUPPORTED}use --model_name_or_path"),
    ("--save_path model", f"--save_path {NOT_SUPPORTED}use --output_dir"),
    # what users of other trainers type
    ("--train_file sft.json", f"--train_file {NOT_SUPPORTED}use --data_path"),
    ("--validation_split_percentage 5", "use --eval_data_path"),
    ("--max_seq_length 4096", "use --model_max_length"),
    ("--use_lora True", "use --low_rank_training True"),
    ("--lora_rank 16", "use --lora_r"),
    ("--lora_dropout 0.05", "LoRA is trained without dropout"),
    ("--load_in_4bit True", "quantized training is not supported"),
    ("--packing True", "examples are not packed"),
    ("--torch_dtype bfloat16", "use --bf16 True"),
    ("--batch_size 4", "use --per_device_train_batch_size"),
    ("--epochs 3", "use --num_train_epochs"),
    ("--lr 1e-4", "use --learning_rate"),
    ("--template llama2", "use --prompt_template"),
    (
        "--lerning_rate 1e-4",
        "no such option: --lerning_rate: not a flag of fine-tune nor of TrainingArguments (similar: ",
    ),
    # what transformers accepts and a run cannot do
    ("--per_device_train_batch_size 0", "--per_device_train_batch_size must be at least 1, got 0"),
    ("--per_device_eval_batch_size 0", "--per_device_eval_batch_size must be at least 1, got 0"),
    ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be at least 1, got 0"),
    ("--num_train_epochs 0", "--num_train_epochs must be more than 0, got 0"),
    ("--num_train_epochs -1", "--num_train_epochs must be more than 0, got -1"),
    ("--num_train_epochs 0 --max_steps 5", None),
    ("--max_steps 0", "--max_steps must be at least 1"),
    ("--learning_rate 0", "--learning_rate must be more than 0, got 0"),
    ("--learning_rate nan", "--learning_rate must be a finite number, got nan"),
    ("--learning_rate hot", "learning_rate"),
    ("--weight_decay -1", "--weight_decay must be at least 0, got -1"),
    ("--warmup_steps -5", "--warmup_steps must be at least 0, got -5"),
    ("--warmup_ratio 0.03 --warmup_steps 0", None),
    ("--warmup_ratio 1.5", "--warmup_ratio must be at least 0 and less than 1, got 1.5"),
    ("--tf32 maybe", "--tf32 must be True or False, got 'maybe'"),
    ("--gradient_checkpointing_kwargs {bad", "--gradient_checkpointing_kwargs: not valid JSON"),
    ("--load_best_model_at_end False --local_rank -1 --label_smoothing_factor 0.0 --packing False", None),
    ("--num-train-epochs 2", None),
    ("--flash_attn False", f"--flash_attn {NOT_SUPPORTED}use --use_flash_attn"),
    ("--adam_beta2 1.0", "--adam_beta2 must be less than 1, got 1"),
    ("--seed -1", "--seed must be at least 0, got -1"),
    ("--logging_steps 0", "--logging_steps must be more than 0, got 0"),
    ("--save_steps 0", "--save_steps must be more than 0, got 0"),
    ("--eval_strategy steps --eval_steps 5", "--eval_strategy steps needs held-out examples: add --eval_data_path"),
    ("--evaluation_strategy epoch", "--eval_strategy epoch needs held-out examples"),
    ("--do_eval True", "--do_eval True needs held-out examples"),
    ("--evaluation_strategy epoch --eval_data_path DATA", None),
    ("--remove_unused_columns True", f"--remove_unused_columns True {NOT_SUPPORTED}"),
    ("--save_strategy best", f"--save_strategy best {NOT_SUPPORTED}"),
    ("--load_best_model_at_end True", f"--load_best_model_at_end {NOT_SUPPORTED}"),
    ("--lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch --eval_data_path DATA", NOT_SUPPORTED),
    ("--lr_scheduler_type lineer", "lr_scheduler_type"),
    ("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr with --lr_scheduler_kwargs"),
    ('--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":1e-6}', None),
    ("--optim adamw_bnb_8bit", "--optim adamw_bnb_8bit: You need to install bitsandbytes"),
    ("--optim paged_adamw_32bit", "bitsandbytes"),
    ("--optim adam", "optim"),
    ("--optim adafactor", None),
    (f"--optim adafactor --deepspeed {STAGE3}", "optimizer.type is AdamW but --optim gives adafactor"),
    (f"--optim adamw_torch --deepspeed {STAGE3}", None),
    ("--report_to wandb", "--report_to wandb: its package is not installed"),
    ("--report_to tensorboard", None),
    ("--report_to none", None),
    ("--use_liger_kernel True", "--use_liger_kernel True: the package is not installed: pip install liger-kernel"),
    ("--fp16 True --bf16 True", "At most one of fp16 and bf16 can be True"),
    ("--group_by_length True", None),
    ("--group_by_length maybe", "--group_by_length must be True or False, got 'maybe'"),
    (
        "--evaluation_strategy no --eval_strategy steps",
        "--evaluation_strategy and --eval_strategy are one flag, but differ: no and steps",
    ),
    ("--dataloader_num_workers -1", "--dataloader_num_workers must be at least 0, got -1"),
    ("--dataloader_prefetch_factor 2", "--dataloader_prefetch_factor can only be set"),
    ("--accelerator_config nowhere.json", "nowhere.json"),
    ("--fsdp full_shard", f"--fsdp {NOT_SUPPORTED}--deepspeed"),
    ("--ddp_backend gloo", f"--ddp_backend {NOT_SUPPORTED}"),
    ("--resume_from_checkpoint last", f"--resume_from_checkpoint {NOT_SUPPORTED}a run resumes by itself"),
    ("--push_to_hub False", None),
    ("--push_to_hub True", "hf upload ORG/NAME OUT/model"),
    ("--hub_model_id me/model", "hf upload ORG/NAME OUT/model"),
]


def config_of(line, tiny_model, data):
    words = line.replace("DATA", str(data)).split()
    flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    own = {name: flags.pop(name) for name in list(flags) if name in FineTuneConfig.flags()}
    required = {"model_name_or_path": tiny_model, "data_path": str(data), "output_dir": "OUT", "model_max_length": 512}
    return FineTuneConfig(**required, **own, training=flags)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.json"
    path.write_text(json.dumps([{"instruction": "Ask.", "input": "Iron melts.", "output": "What melts?"}]))
    return path


@pytest.mark.parametrize(("line", "message"), SETS, ids=[line[:60] for line, _ in SETS])
def test_flag_sets(line, message, tiny_model, data):
    if message is None:
        assert decide(config_of(line, tiny_model, data)).flags is not None
        return
    with pytest.raises(ConfigError) as refused:
        decide(config_of(line, tiny_model, data))
    text = str(refused.value)
    assert message in text
    assert len(text.splitlines()) == 1
    assert "`" not in text or "`qaray" in text


def test_a_token_is_in_no_message():
    for name in ("hub_token", "push_to_hub_token"):
        with pytest.raises(ConfigError) as refused:
            normal({name: "hf_secretsecret"})
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["hub_token", "hub-token"])
def test_a_token_is_not_submitted(name):
    """A job's command line is kept by Ray: it is refused before a client connects."""
    with pytest.raises(ConfigError, match=r"--hub_token is not supported: .*hf upload ORG/NAME OUT/model") as refused:
        submit_fine_tune({name: "hf_secretsecret"})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_what_the_command_accepts_is_submitted_to_the_typed_address(monkeypatch, variable):
    """Ray's client lets its variables win over its argument."""
    monkeypatch.setenv(variable, "http://127.0.0.1:2")
    with pytest.raises(ConfigError, match=r"--address 'http://127\.0\.0\.1:1':.*127\.0\.0\.1:1\b"):
        submit_fine_tune({"push_to_hub": "False", "num-train-epochs": "1"})


def submit_fine_tune(flags):
    required = {"output_dir": "OUT", "data_path": "x", "model_name_or_path": "y"}
    submit(SubmitConfig(command="fine-tune", address="http://127.0.0.1:1", command_flags={**required, **flags}))


def test_without_group_by_length_the_order_is_random():
    assert normal({"group_by_length": "False"}) == {"train_sampling_strategy": "random"}
    assert normal({"group_by_length": "True"}) == {}
    with pytest.raises(ConfigError, match="--group_by_length False contradicts --train_sampling_strategy sequential"):
        normal({"group_by_length": "False", "train_sampling_strategy": "sequential"})


@pytest.mark.parametrize(
    ("flags", "warmup"),
    [
        ({"warmup_ratio": "0.03"}, "0.03"),
        ({"warmup_ratio": "0.03", "warmup_steps": "0"}, "0.03"),
        ({"warmup_ratio": "0", "warmup_steps": "100"}, "100"),
        ({"warmup_ratio": "0.1", "warmup_steps": "10"}, "10"),
    ],
)
def test_steps_of_warm_up_come_before_a_ratio(flags, warmup):
    assert normal(flags) == {"warmup_steps": warmup}


def test_a_cpu_drops_what_it_lacks_with_a_line(monkeypatch):
    flags = {"bf16": "True", "tf32": "True", "fp16": "False"}
    monkeypatch.setattr("qaray.finetune.arguments.cpu_has_bf16", lambda: False)
    assert for_cpu(flags) == {"bf16": "False", "tf32": "False", "fp16": "False"}
    assert [note.split(":")[0] for note in precision_notes(flags)] == ["--bf16 True", "--tf32 True"]
    monkeypatch.setattr("qaray.finetune.arguments.cpu_has_bf16", lambda: True)
    assert for_cpu(flags) == {"bf16": "True", "tf32": "False", "fp16": "False"}
    assert len(precision_notes(flags)) == 1


def test_no_cpu_trains_in_float16():
    with pytest.raises(ConfigError, match="--fp16 True requires GPUs"):
        check_cpu(checked_arguments({"fp16": "True"}, has_eval_data=False))


@pytest.mark.parametrize(
    ("flags", "examples", "workers", "steps"),
    [
        ({"per_device_train_batch_size": "2", "num_train_epochs": "3"}, 8, 1, 12),
        ({"per_device_train_batch_size": "2", "num_train_epochs": "3"}, 9, 2, 9),
        ({"per_device_train_batch_size": "1", "gradient_accumulation_steps": "8", "num_train_epochs": "1"}, 9, 1, 2),
        ({"per_device_train_batch_size": "4", "num_train_epochs": "0.5"}, 16, 1, 2),
        ({"per_device_train_batch_size": "4", "max_steps": "7"}, 16, 1, 7),
        ({"per_device_train_batch_size": "4", "dataloader_drop_last": "True", "num_train_epochs": "2"}, 7, 1, 2),
        ({"per_device_train_batch_size": "4", "dataloader_drop_last": "True", "max_steps": "7"}, 7, 2, 0),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(flags, examples, workers, steps):
    assert steps_of(checked_arguments(flags, has_eval_data=False), examples, workers) == steps


@pytest.mark.parametrize(("deepspeed", "refused"), [(False, False), (True, True)])
def test_a_resume_with_another_number_of_workers(tmp_path, tiny_model, data, deepspeed, refused):
    """Without DeepSpeed it goes on, and says that the global batch changed; sharded state cannot."""
    line = f"--num_workers 2 --per_device_train_batch_size 4 --storage_path {tmp_path}"
    job = decide(config_of(line, tiny_model, data))
    note = {"identity": identity_hash(job.identity), "world_size": 4, "deepspeed": deepspeed}
    (job.checkpoints / TRAINING).write_json(note)
    said = []
    if refused:
        with pytest.raises(ConfigError, match="was written by 4 workers but --num_workers is 2"):
            check_checkpoint(job, said.append)
    else:
        check_checkpoint(job, said.append)
        assert len(said) == 1
        assert "a step has 8 examples, not 16" in said[0]
    (job.checkpoints / TRAINING).write_json({**note, "world_size": 2})
    check_checkpoint(job, lambda line: pytest.fail(line))
