"""The model card: README.md beside an exported model, in the Hub's format.

It is written from what a checkpoint contains, its TRAINING file and trainer_state.json; lines without a fact are left
out. Files and local models appear by name, without their folders.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import yaml

from qaray.asking.templates import LLAMA2_NO_INPUT
from qaray.corpus.readers.dispatch import data_files
from qaray.models.contract import CONTRACT, Contract
from qaray.run.manifests import versions
from qaray.run.storage import Location

CARD = "README.md"
FOLDER = "MODEL_FOLDER"  # placeholder in the examples
ANSWER_TOKENS = 1024  # maximum length of an answer in the example, in tokens
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
CHUNK = 1 << 22  # bytes that are hashed at once
LIBRARIES = ("accelerate", "deepspeed", "peft")  # of training, besides those of every manifest
ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "weight_decay", "max_grad_norm", "optim", "num_train_epochs", "max_steps", "bf16", "fp16", "seed",
)  # fmt: skip


def data_facts(pattern: str) -> list[dict[str, Any]]:
    """{file, sha256, bytes} of each file of a path, folder, glob or URI. ``file`` is relative to their common folder.

    Raises FileNotFoundError if there is none, StoreFailed if the storage keeps failing.
    """
    files = data_files(pattern)
    folder = os.path.commonpath([os.path.dirname(file.path) for file in files])
    return [{"file": os.path.relpath(file.path, folder), **_content(file)} for file in files]


def _content(file: Location) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with file.open_raw() as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}


def training_facts(arguments: Any, deepspeed: dict[str, Any] | None, data: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint records for the model card. ``arguments``: TrainingArguments; ``data``: see LoopSettings."""
    values = {name: getattr(arguments, name) for name in ARGUMENTS}
    for name, key in (("lr_scheduler_type", "scheduler"), ("optim", "optimizer")):
        of_flag = str(getattr(values[name], "value", values[name]))
        values[name] = (deepspeed or {}).get(key, {}).get("type", of_flag)  # DeepSpeed's JSON takes precedence
    return {
        "zero_stage": deepspeed["zero_optimization"]["stage"] if deepspeed else None,
        "arguments": values,
        "data": data,
        "versions": {**versions(), **{name: _version(name) for name in LIBRARIES}},
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def model_card(note: dict[str, Any], state: dict[str, Any], adds_special: bool = True) -> str:
    """The card as Markdown.

    Args:
        note: TRAINING file of the checkpoint.
        state: Its trainer_state.json.
        adds_special: Whether the tokenizer's defaults encode a rendered prompt as training did; otherwise the examples
            add no special tokens.
    """
    contract = Contract(**note["contract"])
    base = _base(note["config"]["model_name_or_path"])
    sections = [
        _front_matter(contract, note["config"]),
        f"# {base}, fine-tuned with qaray",
        _list(_settings(base, contract, note, state)),
        _data(note.get("data") or {}),
        _template(contract),
        _losses(state.get("log_history") or []),
        _usage(contract, adds_special),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _base(model: str) -> str:
    """The base model's name: a hub id, or the last part of a path or of bundled:NAME."""
    if _is_local(model):
        return os.path.basename(os.path.normpath(model))
    return model.removeprefix("bundled:")


def _is_local(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or os.path.isdir(model)


def _front_matter(contract: Contract, config: dict[str, Any]) -> str:
    values: dict[str, Any] = {}
    if HUB_ID.fullmatch(model := config["model_name_or_path"]) and not _is_local(model):
        values["base_model"] = model
    if re.fullmatch(r"[a-z]{2}", contract.request_language or ""):
        values["language"] = [contract.request_language]
    values |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["qaray"]}
    if config.get("low_rank_training"):
        values["tags"].append("lora")
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _settings(base: str, contract: Contract, note: dict[str, Any], state: dict[str, Any]) -> Iterator[str]:
    config, arguments = note["config"], note.get("arguments")
    workers = note.get("world_size")
    yield f"Base model: {_code(base)}"
    yield f"Context: {contract.context_size:,} tokens, prompt and answer together"
    yield f"RoPE factor: {contract.rope_factor:g}" + ("" if contract.rope_factor != 1 else " (not scaled)")
    yield f"Attention in training: {_attention(config)}; in inference, attention is full"
    if config.get("low_rank_training"):
        also = config.get("trainable_params")
        yield (
            f"LoRA on q, k, v and o, rank {config['lora_r']}, alpha {config['lora_alpha']}, merged into the weights"
            + (f"; trained in full: parameters named {_code(also)}" if also else "")
        )
    else:
        yield "All parameters were trained"
    if note.get("zero_stage"):
        yield f"DeepSpeed ZeRO stage {note['zero_stage']}"
    if workers:
        yield f"Training processes: {workers}"
    if arguments:
        yield from _hyperparameters(arguments, workers)
    if state.get("global_step"):
        epochs = f", {state['epoch']:.4g} epochs" if state.get("epoch") else ""
        yield f"Optimizer steps: {state['global_step']:,}{epochs}"
    known = {name: version for name, version in (note.get("versions") or {}).items() if version}
    if known:
        yield "Versions: " + ", ".join(f"{name} {version}" for name, version in known.items())


def _attention(config: dict[str, Any]) -> str:
    if config.get("use_full_attn"):
        return "full"
    size = config.get("s2_group_size")
    return "S²-Attn (LongLoRA)" + (f", groups of {size:,} tokens" if size else "")


def _hyperparameters(arguments: dict[str, Any], workers: int | None) -> Iterator[str]:
    batch, accumulated = arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]
    if workers:
        yield (
            f"Global batch: {batch * accumulated * workers} examples "
            f"({batch} per process × {accumulated} accumulated × {workers} processes)"
        )
    yield (
        f"Learning rate: {arguments['learning_rate']:g}, {arguments['lr_scheduler_type']}, warm-up "
        f"{arguments['warmup_steps']:g}, weight decay {arguments['weight_decay']:g}, optimizer {arguments['optim']}"
    )
    yield "Precision: " + ("bfloat16" if arguments["bf16"] else "float16" if arguments["fp16"] else "float32")
    yield f"Seed: {arguments['seed']}"


def _data(data: dict[str, Any]) -> str:
    parts = []
    for split, title in (("train", "Training data"), ("eval", "Held-out data")):
        files, counts = data.get(split) or [], (data.get("counts") or {}).get(split)
        if not files and not counts:
            continue
        lines = [f"{_code(file['file'])}: SHA-256 `{file['sha256']}`, {file['bytes']:,} bytes" for file in files]
        if counts:
            lines.append(
                f"{counts['examples']:,} examples, {counts['tokens']:,} tokens ({counts['answer_tokens']:,} with "
                f"loss); {counts['rejected']:,} records rejected, {counts['truncated']:,} examples truncated"
            )
        parts.append(f"## {title}\n\n{_list(lines)}")
    return "\n\n".join(parts)


def _template(contract: Contract) -> str:
    parts = [f"## Prompt template\n\nSHA-256 `{contract.template_sha256}`.", _fenced(contract.template_text)]
    if contract.template_name == "llama2":
        parts.append(f"Without an input: {_code(LLAMA2_NO_INPUT)}.")
    parts.append("The answer and EOS follow the prompt; they alone carried the loss.")
    if contract.request_text is not None:
        parts.append(f"The inputs are qaray's request for question-answer pairs (SHA-256 `{contract.request_sha256}`):")
        parts.append(_fenced(contract.request_text))
    return "\n\n".join(parts)


def _losses(history: list[dict[str, Any]]) -> str:
    """Table of losses in nats per answer token, with the step of each."""
    steps = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    rows: list[tuple[str, int, float]] = []
    if steps:
        rows += [("training, first", *min(steps)), ("training, last", *max(steps))]
    if held_out:
        rows.append(("held-out, before", *min(held_out)))
    if len(held_out) > 1:
        rows.append(("held-out, after", *max(held_out)))
    if not rows:
        return ""
    lines = ["| | step | loss (nats per answer token) | perplexity |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {step} | {loss:.4f} | {_perplexity(loss)} |" for name, step, loss in rows]
    return "## Losses\n\n" + "\n".join(lines)


def _perplexity(loss: float) -> str:
    try:
        return f"{math.exp(loss):,.2f}"
    except OverflowError:
        return "∞"


def _usage(contract: Contract, adds_special: bool) -> str:
    tokens = min(ANSWER_TOKENS, max(1, contract.context_size // 2))
    options = "" if adds_special else "add_special_tokens=False, "
    example = {"instruction": "Answer the question.", "input": "What is the boiling point of water at sea level?"}
    script = f"""
import json
import re
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path("{FOLDER}")
template = json.loads((folder / "{CONTRACT}").read_text())["template_text"]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

fields = {json.dumps(example, ensure_ascii=False)}
prompt = re.sub(r"\\{{(instruction|input)\\}}", lambda slot: fields[slot[1]], template)
inputs = tokenizer(prompt, {options}return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)  # ends at EOS
answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer)
"""
    without = "" if adds_special else ', with `"add_special_tokens": false`'
    fixed = ["the prompt template", *(["the request"] if contract.request_text is not None else [])]
    return "\n\n".join(
        [
            "## Use with transformers",
            _fenced(script.strip(), "python"),
            "## Use with vLLM",
            _fenced(f"vllm serve {FOLDER} --max-model-len {contract.context_size}", "shell"),
            f"Send rendered prompts to `/v1/completions`{without}, not messages to `/v1/chat/completions`, which would "
            "apply the tokenizer's chat template. Generation stops at the EOS of `generation_config.json`.",
            "## Use with qaray",
            _fenced(f"qaray generate --base_model {FOLDER} --file_path PAPERS --output_dir OUT", "shell"),
            f"`{CONTRACT}` fixes {', '.join(fixed)}, the RoPE factor and the maximum context of "
            f"{contract.context_size:,} tokens.",
        ]
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    """``text`` as inline code."""
    fence = "`" * (1 + _longest_run(text))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _fenced(text: str, language: str = "") -> str:
    """``text`` as a code block, behind a fence that is longer than any in the text."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
