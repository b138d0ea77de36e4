"""Model settings of a run: template, request, lengths, RoPE factor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qaray.asking.request import Request, default_request
from qaray.asking.templates import LLAMA2, MESSAGES, Template
from qaray.config import ConfigError, EngineConfig, GenerateConfig, seq_len_message
from qaray.models.catalogue import resolve
from qaray.models.contract import Contract
from qaray.models.rope import check_rope, model_context, rope_factor
from qaray.models.templates import default_template, named_request, named_template
from qaray.models.tokenizer import load_tokenizer
from qaray.models.weights import check_weights

UNKNOWN_CONTEXT = 1 << 20  # tokens, for a model whose context nobody names


@dataclass(frozen=True)
class ModelPlan:
    """Model settings of a run, determined once by the driver and recorded in run.json."""

    template: Template
    context_size: int  # tokens
    seq_len: int  # tokens, prompt + answer
    rope_factor: float  # total linear RoPE factor to load the model with; 1 = unscaled
    request: Request = field(default_factory=default_request)  # the request for each paper


def plan_model(config: EngineConfig) -> ModelPlan:
    """The model settings of a run. Raises ConfigError if the configuration contradicts the model or its contract."""
    name = config.model_name
    if isinstance(config, GenerateConfig) and config.endpoint.api == "chat":
        return _chat_plan(config)
    if name is None:  # echo without a model, an endpoint without a tokenizer
        size = config.model.context_size or config.model.seq_len or UNKNOWN_CONTEXT
        template = named_template(config.model.prompt_template, None) or Template("llama2", LLAMA2)
        return ModelPlan(template, size, _seq_len(config, size), 1.0, _request(config, None))
    tokenizer = load_tokenizer(name, config.model.cache_dir, config.model.trust_remote_code)
    folder = resolve(name, config.model.cache_dir)
    if config.engine != "http":  # which needs the tokenizer only
        check_weights(folder, name)
    contract = Contract.load(folder)
    max_positions, factor, rope_type = model_context(
        name, folder, config.model.cache_dir, config.model.trust_remote_code
    )
    size = config.model.context_size or (contract.context_size if contract else int(max_positions * factor))
    if contract and size > contract.context_size:
        raise ConfigError(
            f"context_size {size} exceeds the {contract.context_size} tokens that {name} was fine-tuned with: "
            "lower --context_size"
        )
    named = named_template(config.model.prompt_template, tokenizer)
    template = named or (contract.template if contract else default_template(tokenizer))
    if contract and template.sha256 != contract.template_sha256:
        raise ConfigError(
            f"--prompt_template {config.model.prompt_template} is not the template that {name} was fine-tuned with "
            f"({contract.template_name}): omit the flag"
        )
    if isinstance(config, GenerateConfig) and config.asking.structured:
        template = replace(template, opening="")  # the answer begins with a bracket
    needed_factor = max(rope_factor(size, max_positions, factor), contract.rope_factor if contract else 0.0)
    check_rope(needed_factor, max_positions, factor, rope_type, name, f"context_size {size}", "--context_size")
    return ModelPlan(template, size, _seq_len(config, size), needed_factor, _request(config, contract))


def _chat_plan(config: GenerateConfig) -> ModelPlan:
    """The settings of a chat endpoint, which has a template and a context of its own."""
    name, size = config.model_name, config.model.context_size
    if name and not size:
        load_tokenizer(name, config.model.cache_dir, config.model.trust_remote_code)
        positions, factor, _ = model_context(
            name, resolve(name, config.model.cache_dir), config.model.cache_dir, config.model.trust_remote_code
        )
        size = int(positions * factor)
    size = size or config.model.seq_len or UNKNOWN_CONTEXT
    return ModelPlan(MESSAGES, size, _seq_len(config, size), 1.0, _request(config, None))


def _request(config: EngineConfig, contract: Contract | None) -> Request:
    """The request of a generation: --request, else the contract's, else the default.

    Raises ConfigError if --request differs from the contract's request.
    """
    if not isinstance(config, GenerateConfig):
        return default_request()
    trained = contract.request if contract else None
    if config.asking.request is None and trained:
        return trained if config.asking.language is None else replace(trained, language=config.asking.language)
    request = named_request(config.asking.request, config.asking.language)
    if trained and request.text != trained.text:
        raise ConfigError(
            f"--request {config.asking.request} is not the request that {config.model_name} was fine-tuned with: "
            "omit the flag"
        )
    return request


def _seq_len(config: EngineConfig, context_size: int) -> int:
    seq_len = config.model.seq_len or context_size
    if seq_len > context_size:
        raise ConfigError(seq_len_message(seq_len, context_size))
    return seq_len
