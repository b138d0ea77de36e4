"""Tokenizers of transformers, for prompts and training."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from typing import Any

from qaray.asking.templates import EstimatedTokenizer, Tokenizer, WordTokenizer
from qaray.config import ConfigError, EngineConfig
from qaray.models.catalogue import resolve
from qaray.models.loading import load_config, loading

# Special tokens that a tokenizer for training must have (LongLoRA's names).
SPECIAL = {"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


class HFTokenizer:
    """A transformers tokenizer with the Tokenizer interface of prompts."""

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos_id is not None and tokenizer("a").input_ids[:1] == [self.bos_id]
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1]
        self._special = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        return list(self.hf(text, add_special_tokens=False, verbose=False).input_ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return self.encode_with_spans(text)[1]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(token ids of ``text``, without added special tokens, [T]; (start, end) of each in characters, [T])."""
        encoded = self.hf(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded.input_ids), list(encoded.offset_mapping)

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
    """The model's tokenizer, cached in the process. Raises ConfigError if it cannot be loaded or is not a fast one.

    ``add_special`` adds missing special tokens, for training.
    """
    from transformers import AutoTokenizer

    folder = resolve(name, cache_dir)
    with loading(f"model {name}: no tokenizer could be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
        if not tokenizer.is_fast:
            raise ValueError("requires a fast tokenizer (tokenizer.json)")
        if add_special:
            tokenizer.add_special_tokens(
                {role: token for role, token in SPECIAL.items() if getattr(tokenizer, role) is None}
            )
        return HFTokenizer(tokenizer)


def eos_ids(name: str, cache_dir: str, trust_remote_code: bool = False) -> frozenset[int]:
    """The EOS token ids of a model: those of its generation config and of its tokenizer."""
    from transformers import GenerationConfig

    ids: list[int | None] = [load_tokenizer(name, cache_dir, trust_remote_code).hf.eos_token_id]
    folder = resolve(name, cache_dir)
    settings: Any = load_config(folder, cache_dir, trust_remote_code, name)
    with contextlib.suppress(ConfigError), loading(name):
        settings = GenerationConfig.from_pretrained(folder, cache_dir=cache_dir)
    named = settings.eos_token_id
    return frozenset(i for i in [*ids, *(named if isinstance(named, list) else [named])] if isinstance(i, int))


def tokenizer_of(config: EngineConfig) -> Tokenizer:
    """The tokenizer of the configuration's model; without a model, one that estimates or counts words."""
    if config.model_name is None:
        return EstimatedTokenizer() if config.engine == "http" else WordTokenizer()
    return load_tokenizer(config.model_name, config.model.cache_dir, config.model.trust_remote_code)
