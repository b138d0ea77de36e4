"""The model to train: RoPE scaling, special tokens, attention, LoRA."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import torch

from qaray.asking.request import Request
from qaray.config import ConfigError, FineTuneConfig
from qaray.finetune import attention
from qaray.models.catalogue import resolve
from qaray.models.contract import Contract
from qaray.models.loading import first_line, load_config, loading, quiet_transformers
from qaray.models.planner import ModelPlan
from qaray.models.rope import check_rope, model_context, rope_factor, scale_rope
from qaray.models.templates import named_template
from qaray.models.tokenizer import load_tokenizer
from qaray.models.weights import check_loaded, check_weights

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def plan_training(config: FineTuneConfig) -> ModelPlan:
    """Template, context length and RoPE factor of a training. Raises ConfigError if the model does not support them."""
    from qaray.finetune.encoding import template_for_training

    name, length = config.model_name_or_path, config.model_max_length
    tokenizer = load_tokenizer(name, config.cache_dir, config.trust_remote_code, add_special=True)
    folder = resolve(name, config.cache_dir)
    check_weights(folder, name)
    own, factor, rope_type = model_context(name, folder, config.cache_dir, config.trust_remote_code)
    wanted = rope_factor(length, own, factor)
    check_rope(wanted, own, factor, rope_type, name, f"model_max_length {length}", "--model_max_length")
    if not config.use_full_attn:
        _check_attention(load_config(folder, config.cache_dir, config.trust_remote_code, name), name)
    template = named_template(config.prompt_template, tokenizer)
    assert template is not None
    return ModelPlan(template_for_training(template), length, length, wanted)


def hidden_size(config: FineTuneConfig) -> int | None:
    """Width of the model's residual stream, None if its config does not name it."""
    name = config.model_name_or_path
    folder = resolve(name, config.cache_dir)
    hf_config = load_config(folder, config.cache_dir, config.trust_remote_code, name)
    return getattr(hf_config.get_text_config(), "hidden_size", None)


def _check_attention(hf_config: Any, name: str) -> None:
    """S²-Attn replaces plain causal attention. Raises ConfigError for a model with any other kind."""
    kinds = set(getattr(hf_config, "layer_types", None) or ["full_attention"])
    windows = not getattr(hf_config, "layer_types", None) and getattr(hf_config, "sliding_window", None)
    if kinds != {"full_attention"} or windows or getattr(hf_config, "attn_logit_softcapping", None):
        raise ConfigError(
            f"model {name} uses sliding-window or soft-capped attention, which S²-Attn does not support: "
            "add --use_full_attn True"
        )


def contract_of(config: FineTuneConfig, plan: ModelPlan, request: Request | None) -> Contract:
    """The settings that generation must share with training. ``request``: the examples' request, None if unknown."""
    tokenizer = load_tokenizer(config.model_name_or_path, config.cache_dir, config.trust_remote_code, add_special=True)
    return Contract(
        template_name=plan.template.name,
        template_text=plan.template.text,
        template_opening=plan.template.opening,
        template_source=plan.template.source,
        template_sha256=plan.template.sha256,
        request_text=request.text if request else None,
        request_language=request.language if request else None,
        request_sha256=request.sha256 if request else None,
        context_size=plan.context_size,
        rope_factor=plan.rope_factor,
        special_tokens={k: str(v) for k, v in tokenizer.hf.special_tokens_map.items() if isinstance(v, str)},
    )


def load_model(
    config: FineTuneConfig,
    rope_factor: float,
    dtype: torch.dtype,
    *,
    training: bool = True,
    device: torch.device | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Any:
    """The model to train. Under ZeRO-3, once TrainingArguments exist, it loads sharded: no rank holds a full copy.

    ``training=False`` loads it for export: full attention, no gradient checkpointing. ``device``, None for the CPU, and
    ``compute_dtype``, autocast's or None for the weights' ``dtype``, decide on the attention kernel of training. Raises
    ConfigError if the model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    folder = resolve(config.model_name_or_path, config.cache_dir)
    hf_config = load_config(folder, config.cache_dir, config.trust_remote_code, config.model_name_or_path)
    scale_rope(hf_config, rope_factor)
    hf_config.use_cache = not training
    device = torch.device("cpu") if device is None else device
    kernel = attention.implementation(config, device, compute_dtype or dtype) if training else "sdpa"
    with loading(f"model {config.model_name_or_path}"):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            cache_dir=config.cache_dir,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            attn_implementation=kernel,
            output_loading_info=True,
        )
        check_loaded(found)
    with quiet_transformers():
        tokenizer = load_tokenizer(
            config.model_name_or_path, config.cache_dir, config.trust_remote_code, add_special=True
        )
        base = load_tokenizer(config.model_name_or_path, config.cache_dir, config.trust_remote_code)
        known = set(base.hf.get_vocab().values())
        grow_embeddings(model, known, set(tokenizer.hf.get_vocab().values()) - known)
    model.config.pad_token_id = tokenizer.hf.pad_token_id
    return low_rank(model, config) if config.low_rank_training else model


def grow_embeddings(model: Any, known: Collection[int], added: Collection[int]) -> None:
    """Sets the embeddings of ``added`` token ids, input and output, to the mean of the ``known`` ids' (LongLoRA).

    Embeddings with too few rows are resized. Rows of no token, which many models have as padding, do not count.
    """
    rows, needed = model.get_input_embeddings().num_embeddings, max(*known, *added) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    blank = torch.tensor(sorted({*added, *range(rows, needed)}))
    if not len(blank):
        return
    trained = torch.tensor(sorted(i for i in known if i < rows))
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    parameters = [layer.weight for layer in layers] + [getattr(layer, "bias", None) for layer in layers]
    for parameter in {id(each): each for each in parameters if each is not None}.values():
        with torch.no_grad(), _gathered(parameter):
            parameter[blank] = parameter[trained].mean(dim=0)


def _gathered(parameter: torch.nn.Parameter) -> Any:
    """Gathers a parameter that ZeRO-3 has partitioned, for rank 0 to change. Resized embeddings are whole."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)


def low_rank(model: Any, config: FineTuneConfig) -> Any:
    """The model with LoRA on its attention projections.

    Parameters whose names contain a part of ``trainable_params`` are trained in full. Raises ConfigError if the model
    lacks the projections, or a part that the user named.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(LORA_TARGETS),
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, lora, autocast_adapter_dtype=False)  # ZeRO-3 needs one dtype for all
    except ValueError as error:
        raise ConfigError(f"--low_rank_training: {first_line(error)}") from None
    names = dict(wrapped.named_parameters())
    typed = config.trainable_params != FineTuneConfig.model_fields["trainable_params"].default
    for part in filter(None, (part.strip() for part in config.trainable_params.split(","))):
        found = [name for name in names if part in name]
        if not found and typed:
            raise ConfigError(f"--trainable_params {part}: no parameter of {config.model_name_or_path} has such a name")
        for name in found:
            names[name].requires_grad_(True)
    wrapped.enable_input_require_grads()  # gradient checkpointing needs inputs that require gradients
    return wrapped
