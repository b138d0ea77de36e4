"""The names of fine-tuning's flags: those of transformers' TrainingArguments, as SciQAG's command takes them.

Nothing heavy is imported here, so that a flag is refused before a job is submitted.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from qaray.config import ConfigError, FineTuneConfig
from qaray.models.loading import quiet_transformers

# Old flag → transformers' current name.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # below 1: a share of the steps
}
# Flags without effect, accepted so that old scripts work.
IGNORED = {"overwrite_output_dir", "save_safetensors", "logging_dir", "do_train"}
UPLOADING = ("hub_", "push_to_hub")  # how the names of flags about the Hugging Face Hub begin
# Flags that qaray sets itself or does not support, and the reason.
MANAGED = {
    "use_cpu": "--use_gpu says what trains",
    "no_cuda": "--use_gpu says what trains",
    "local_rank": "Ray Train numbers the processes; --num_workers says how many there are",
    "ddp_backend": "processes communicate by nccl on GPUs and by gloo on CPUs",
    "fsdp": "--deepspeed ds_configs/stage3.json shards the model",
    "fsdp_config": "--deepspeed ds_configs/stage3.json shards the model",
    "parallelism_config": "--deepspeed ds_configs/stage3.json shards the model",
    "resume_from_checkpoint": "a run resumes by itself",
    "save_only_model": "the model is made from whole checkpoints",
    "load_best_model_at_end": "the model is made from the last checkpoint",
    "metric_for_best_model": "the model is made from the last checkpoint",
    "greater_is_better": "the model is made from the last checkpoint",
    "auto_find_batch_size": "batches are grouped by length before the first step",
    "eval_on_start": "the loss of --eval_data_path is always measured before the first step",
    "batch_eval_metrics": "the loss is the only metric",
    "include_for_metrics": "the loss is the only metric",
    "label_names": "the labels are the answer's tokens",
    "debug": "QARAY_DEBUG=1 shows what Ray and the workers log",
    "label_smoothing_factor": "the loss is computed on the answer's tokens only",
}
# What to use instead of flags of LongLoRA's scripts, of launchers and of other trainers.
ADVICE = {
    "Ray starts the training processes: --num_workers says how many":
        "nproc_per_node num_processes num_gpus n_gpus gpus world_size num_nodes nnodes",
    "Ray starts and connects the training processes: leave it out":
        "node_rank master_addr master_port rdzv_backend rdzv_endpoint rdzv_id standalone hostfile include launcher",
    "use --deepspeed": "deepspeed_config zero_stage",
    "the model's config.json names its type: leave it out": "model_type",
    "`qaray export CHECKPOINT FOLDER` merges a LoRA checkpoint of qaray; pass a merged model to --model_name_or_path":
        "peft_model adapter_name_or_path",
    "a run resumes by itself; `qaray export CHECKPOINT FOLDER` converts a checkpoint": "checkpoint_path",
    "use --output_dir": "save_path save_dir out_dir",
    "use --model_name_or_path": "base_model model model_name model_path model_id",
    "the tokenizer is the model's: leave it out": "tokenizer tokenizer_name tokenizer_name_or_path",
    "use --model_max_length":
        "context_size seq_len max_seq_length max_seq_len max_length block_size cutoff_len sequence_len",
    "use --use_flash_attn": "flash_attn flash_attention attn_implementation use_flash_attention_2",
    "use --data_path":
        "train_file train_data_file train_data train_data_path train_path dataset dataset_name dataset_path "
        "dataset_dir file_path",
    "held-out examples are a file of their own: use --eval_data_path":
        "validation_file validation_split_percentage valid_data_path val_set_size val_size eval_file eval_data "
        "eval_path eval_dataset",
    "use --low_rank_training True": "use_lora use_peft lora adapter finetuning_type",
    "use --lora_r": "lora_rank rank",
    "LoRA is trained without dropout, as in LongLoRA: leave it out": "lora_dropout",
    "LoRA is applied to the attention projections; --trainable_params names what is trained in full":
        "lora_target_modules lora_target lora_target_linear target_modules modules_to_save",
    "quantized training is not supported: --deepspeed ds_configs/stage3.json keeps parameters and optimizer in host "
    "memory": "load_in_4bit load_in_8bit use_qlora q_lora bits double_quant quant_type quantization_bit",
    "examples are not packed: batches are grouped by length": "packing neat_packing sample_packing",
    "use --bf16 True or --fp16 True": "torch_dtype dtype precision pure_bf16",
    "use --per_device_train_batch_size": "batch_size micro_batch_size train_batch_size",
    "RoPE is scaled linearly up to --model_max_length: leave it out": "rope_scaling rope_theta",
    "S²-Attn is the default; --use_full_attn True switches it off": "shift_attn use_shift_attn group_size_ratio",
    "use --per_device_eval_batch_size": "eval_batch_size",
    "use --num_train_epochs": "epochs num_epochs",
    "use --learning_rate": "lr",
    "use --prompt_template": "template conv_template chat_template",
}  # fmt: skip
FOREIGN_SWITCHES = (
    "use_lora", "use_peft", "lora", "lora_dropout", "load_in_4bit", "load_in_8bit", "use_qlora", "q_lora",
    "double_quant", "packing", "neat_packing", "sample_packing", "pure_bf16",
)  # fmt: skip
FOREIGN = {name: advice for advice, names in ADVICE.items() for name in names.split()}
# Names whose values below ask for nothing that qaray does.
SWITCHES = {*MANAGED, *FOREIGN_SWITCHES, "push_to_hub", "hub_private_repo", "hub_always_push"}
OFF = ("false", "no", "n", "f", "none", "0", "0.0", "-1", "")
TRUE, FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")  # as transformers reads them


def supported(flags: Mapping[str, str], output_dir: str = "OUT") -> dict[str, str]:
    """The flags without those that have no effect; dashes in names are underscores, as transformers reads them.

    Raises ConfigError for a flag that is not supported, with what to use instead, and never with its value.
    """
    named = {name.replace("-", "_"): value for name, value in flags.items()}
    kept = {name: value for name, value in named.items() if name not in IGNORED and not _is_off(name, value)}
    for name in kept:
        if name.startswith(UPLOADING):
            raise ConfigError(
                f"--{name} is not supported: nothing is uploaded by a run; when it is finished, use "
                f"hf upload ORG/NAME {output_dir}/model"
            )
        if reason := MANAGED.get(name) or FOREIGN.get(name):
            raise ConfigError(f"--{name} is not supported: {reason}")
    return kept


def normal(flags: dict[str, str], output_dir: str = "OUT") -> dict[str, str]:
    """The flags under transformers' current names, without those that have no effect.

    Raises ConfigError for unsupported or unknown flags, and for one that is given twice under two names.
    """
    flags = _warmup(_sampling(supported(flags, output_dir)))
    known = _known()
    named: dict[str, str] = {}
    for given, value in flags.items():
        name = RENAMED.get(given, given)
        if name not in known:
            similar = [f"--{each}" for each in difflib.get_close_matches(name, [*known, *FineTuneConfig.flags()])]
            hint = f" (similar: {', '.join(similar)})" if similar else ""
            raise ConfigError(f"no such option: --{name}: not a flag of fine-tune nor of TrainingArguments{hint}")
        if named.setdefault(name, value) != value:
            old = next(old for old, new in RENAMED.items() if new == name and old in flags)
            raise ConfigError(f"--{old} and --{name} are one flag, but differ: {flags[old]} and {flags[name]}")
    return named


def _is_off(name: str, value: str) -> bool:
    return name in SWITCHES and value.lower() in OFF


def _warmup(flags: dict[str, str]) -> dict[str, str]:
    """Of --warmup_ratio and --warmup_steps, the one that is not 0; steps before a ratio, as in transformers.

    Raises ConfigError for a ratio of 1 or more, which transformers would take for a number of steps.
    """
    if "warmup_ratio" not in flags:
        return flags
    try:
        ratio, steps = float(flags["warmup_ratio"]), float(flags.get("warmup_steps", 0))
    except ValueError:
        return flags  # transformers says what it is
    if not 0 <= ratio < 1:
        raise ConfigError(f"--warmup_ratio must be at least 0 and less than 1, got {flags['warmup_ratio']}")
    unused = "warmup_ratio" if steps else "warmup_steps"
    return {name: value for name, value in flags.items() if name != unused}


def _sampling(flags: dict[str, str]) -> dict[str, str]:
    """Translates transformers' former --group_by_length: grouping is the default, without it the order is random."""
    value = flags.get("group_by_length")
    if value is None:
        return flags
    if value.lower() not in (*TRUE, *FALSE):
        raise ConfigError(f"--group_by_length must be True or False, got {value!r}")
    wanted = "group_by_length" if value.lower() in TRUE else "random"
    given = flags.get("train_sampling_strategy", wanted)
    if given != wanted:
        raise ConfigError(f"--group_by_length {value} contradicts --train_sampling_strategy {given}")
    rest = {name: each for name, each in flags.items() if name != "group_by_length"}
    return rest if wanted == "group_by_length" else {**rest, "train_sampling_strategy": wanted}


def _known() -> set[str]:
    with quiet_transformers():
        from transformers import TrainingArguments
    return {field.name for field in dataclasses.fields(TrainingArguments)}
