"""A transformers causal language model with a slot cache: prefill one sequence, decode many.

Prefill runs one prompt at a time, in chunks, which bound the memory: a paper's thousands of tokens saturate the device,
so batching prompts would add padding and no speed. Decoding runs all slots in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qaray.config import ConfigError
from qaray.engines.local.cpu import set_up
from qaray.engines.local.kv_cache import ATTENTION, SlotCache, Step
from qaray.engines.local.sampling import NOT_FINITE, not_finite
from qaray.models.catalogue import resolve
from qaray.models.hardware import available_memory, pick_dtype
from qaray.models.loading import load_config, loading, one_line
from qaray.models.rope import scale_rope
from qaray.models.tokenizer import HFTokenizer, eos_ids, load_tokenizer
from qaray.models.weights import check_loaded

CHUNK = {"cpu": 1024, "cuda": 4096}  # tokens per prefill step


@dataclass(frozen=True)
class ModelSettings:
    """Model settings of an actor. Picklable."""

    name: str
    cache_dir: str
    seq_len: int  # maximum sequence length, tokens
    rope_factor: float = 1.0
    dtype: str = "auto"
    flash_attn: bool = True
    gpus: float = 1.0  # GPUs per actor, may be a fraction; 0 = CPUs
    threads: int | None = None  # CPU threads; None: the cores divided by ``actors``
    actors: int = 1  # maximum actors that share a node's cores and memory
    batch_tokens: int | None = None  # key-value cache budget, tokens; None: from the free memory
    trust_remote_code: bool = False


class CausalLM:
    """A loaded model. Not thread-safe."""

    def __init__(self, settings: ModelSettings) -> None:
        """Raises ConfigError if the model cannot be loaded, or is not supported by the slot cache."""
        self.name = settings.name
        set_up(settings.threads, settings.actors)
        self.device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.tokenizer: HFTokenizer = load_tokenizer(settings.name, settings.cache_dir, settings.trust_remote_code)
        self.flash = _flash_attn(settings.flash_attn, self.device, self.dtype)
        self.model = self._load(settings)
        self.seq_len = settings.seq_len
        self.chunk = CHUNK[self.device.type]
        self.eos_ids = eos_ids(settings.name, settings.cache_dir, settings.trust_remote_code)
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        self.layers = config.num_hidden_layers
        self.kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._check(SlotCache(self.layers, self.kv_heads, self.head_dim, 256, self.dtype, self.device))
        self.budget_tokens = max(settings.batch_tokens or self._free_tokens(settings), settings.seq_len)
        self.cache = self.new_cache(self.budget_tokens)

    @property
    def attention(self) -> str:
        """Name of the attention backend, for the log."""
        return "flash-attn" if self.flash is not None else "SDPA"

    def new_cache(self, budget_tokens: int) -> SlotCache:
        """Raises ConfigError if the memory cannot hold ``budget_tokens``."""
        try:
            return SlotCache(self.layers, self.kv_heads, self.head_dim, budget_tokens, self.dtype, self.device)
        except (MemoryError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"model {self.name}: no memory for the keys and values of {budget_tokens:,} tokens "
                f"({one_line(error)}): lower --seq_len, --context_size or --batch_tokens"
            ) from None

    @torch.inference_mode()
    def prefill(self, slot: int, ids: Sequence[int], start: int = 0) -> torch.Tensor:
        """Writes ``ids`` to a slot from position ``start``; returns float32 logits after the last token, [V]."""
        for first in range(0, len(ids), self.chunk):
            chunk = ids[first : first + self.chunk]
            step = Step(slot=slot, start=start + first, flash=self.flash)
            places = torch.arange(step.start, step.start + len(chunk), device=self.device)
            logits = self._forward(torch.tensor([list(chunk)], device=self.device), places[None], step)[0, -1]
        return logits.float()

    @torch.inference_mode()
    def prefill_tree(
        self, slot: int, ids: Sequence[int], parents: Sequence[int], start: int, heads: Sequence[int]
    ) -> torch.Tensor:
        """Computes a tree of tokens rooted at position ``start`` of a slot, whose earlier positions are filled.

        ``ids`` [T] are in depth-first order; ``parents`` [T] are the indices of their parents, −1 at the root. Returns
        float32 logits after the tokens with indices ``heads`` [N]: [N, V]. The tree's cache entries cannot be reused.
        """
        depths, ends = [0] * len(ids), list(range(1, len(ids) + 1))
        for token, parent in enumerate(parents):
            depths[token] = depths[parent] + 1 if parent >= 0 else 0
        for token in reversed(range(len(ids))):
            if parents[token] >= 0:
                ends[parents[token]] = max(ends[parents[token]], ends[token])
        depth = torch.tensor(depths, device=self.device)
        step = Step(slot=slot, start=start, ends=torch.tensor(ends, device=self.device), depths=depth, flash=self.flash)
        head_indices = torch.tensor(list(heads), device=self.device)
        tokens = torch.tensor([list(ids)], device=self.device)
        return self._forward(tokens, (start + depth)[None], step, head_indices)[0].float()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """One step of slots 0 … B−1: writes ``tokens[b]`` at position ``lengths[b]``; returns float32 logits [B, V]."""
        places = torch.tensor(list(lengths), device=self.device)
        # CPUs read whole slots: dense batches, which their kernels need not copy, at most GROWTH positions too long.
        longest = self.cache.capacity if self.device.type == "cpu" else max(lengths) + 1
        step = Step(lengths=places, longest=longest, flash=self.flash)
        ids = torch.tensor(list(tokens), device=self.device)[:, None]
        return self._forward(ids, places[:, None], step)[:, -1].float()

    def _forward(self, ids: torch.Tensor, places: torch.Tensor, step: Step, kept: Any = 1) -> torch.Tensor:
        """Logits after the last token, or after the tokens with indices ``kept``."""
        self.cache.step = step
        out = self.model(
            input_ids=ids,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
            slot_step=step,
        )
        return out.logits

    def release(self) -> None:
        """Returns freed GPU memory to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, settings: ModelSettings) -> Any:
        from transformers import AutoModelForCausalLM

        folder = resolve(settings.name, settings.cache_dir)
        config = load_config(folder, settings.cache_dir, settings.trust_remote_code, settings.name)
        scale_rope(config, settings.rope_factor)
        with loading(f"model {settings.name}"):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=self.dtype,
                cache_dir=settings.cache_dir,
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
            )
            check_loaded(found)
            return model.to(self.device).eval()

    @torch.inference_mode()
    def _check(self, cache: SlotCache) -> None:
        """Compares the slot cache (two chunks, then two steps) with the model's own attention on a few tokens.

        Raises ConfigError if they disagree: the slot cache does not support the model's layers.
        """
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = [(7 + (i * 37) % 200) % vocabulary for i in range(24)]
        with loading(f"model {self.name}"):
            tokens = torch.tensor([ids], device=self.device)
            expected = self.model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        if bool(not_finite(expected[None])[0]):
            raise ConfigError(
                f"model {self.name}: {NOT_FINITE}: its weights are damaged, or exceed the range of {self.dtype}"
            )
        self.model.set_attn_implementation(ATTENTION)
        self.cache = cache
        cache.shape(slots=2, capacity=32)
        self.chunk, chunk = 16, self.chunk
        try:
            for slot in (0, 1):
                self.prefill(slot, ids[:22])
            self.decode([ids[22]] * 2, [22, 22])
            found = self.decode([ids[23]] * 2, [23, 23])
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ConfigError(f"the transformers engine cannot run this model: {error}") from None
        finally:
            self.chunk = chunk
        cosine = torch.nn.functional.cosine_similarity(found, expected[None], dim=-1).min().item()
        if cosine < 0.99:
            raise ConfigError(
                f"the transformers engine cannot run this model: with its cache, the logits agree only to {cosine:.3f}"
            )

    def _free_tokens(self, settings: ModelSettings) -> int:
        """Tokens whose keys and values fit into this actor's share of the free memory."""
        per_token = 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0] * 0.8 * min(1.0, settings.gpus)
        else:
            free = available_memory() * 0.25 / settings.actors
        return int(free) // per_token


def _flash_attn(wanted: bool, device: torch.device, dtype: torch.dtype) -> Any:
    """The flash_attn module if it can be used, else None."""
    if not wanted or device.type != "cuda" or dtype == torch.float32:
        return None
    try:
        import flash_attn
    except ImportError:
        return None
    return flash_attn
