"""Linear RoPE scaling for contexts longer than the model's own."""

from __future__ import annotations

from typing import Any

from qaray.config import ConfigError, shown
from qaray.models.loading import load_config, loading

HIGHEST_FACTOR = 256  # LongLoRA trained with 25; beyond, the positions of a model are no longer told apart


def rope_factor(length: int, max_position_embeddings: int, factor: float = 1.0) -> float:
    """Total linear RoPE factor for sequences of ``length`` tokens, including the config's own ``factor``.

    f · ceil(L / (max_position_embeddings · f)) for lengths beyond the model's context, else f. This is LongLoRA's rule
    applied on top of the config's factor f.
    """
    reach = max_position_embeddings * factor
    return factor if length <= reach else factor * -(-length // reach)


def check_rope(wanted: float, own: int, factor: float, rope_type: str, name: str, what: str, flag: str) -> None:
    """Raises ConfigError if ``wanted`` differs from ``factor`` and the model's RoPE type cannot be scaled linearly.

    Or if it is beyond HIGHEST_FACTOR.
    """
    if wanted != factor and wanted > HIGHEST_FACTOR:
        raise ConfigError(
            f"{what} is {wanted:g} times the {int(own)} positions of {name}, the maximum is {HIGHEST_FACTOR}: "
            f"lower {flag}"
        )
    if wanted != factor and rope_type not in ("default", "linear"):
        raise ConfigError(
            f"{what} needs linear RoPE scaling beyond the {int(own * factor)} tokens of {name}, "
            f"but the model has RoPE type {rope_type!r}, which is not changed: lower {flag}"
        )


def scale_rope(config: Any, factor: float) -> None:
    """Sets the total linear RoPE factor of a transformers config; a factor of 1 leaves it unchanged.

    Raises ConfigError if the config has another RoPE type.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type", "default")
    present = float(rope.get("factor") or 1.0) if kind == "linear" else 1.0
    if factor == present or factor <= 1:
        return
    if kind not in ("default", "linear"):
        raise ConfigError(f"RoPE type {kind!r} cannot be combined with linear scaling")
    config.rope_parameters = {**rope, "rope_type": "linear", "factor": factor}


def model_context(name: str, folder: str, cache_dir: str, trust_remote_code: bool) -> tuple[int, float, str]:
    """(max_position_embeddings, linear factor, RoPE type) of a model.

    Raises ConfigError if its config cannot be loaded or has no max_position_embeddings.
    """
    hf = load_config(folder, cache_dir, trust_remote_code, name)
    with loading(f"model {name}: config.json"):
        check_sizes(hf)
        return _context(hf)


def check_sizes(config: Any) -> None:
    """Raises ValueError unless the sizes of a causal LM in a transformers config are positive."""
    text = config.get_text_config()
    for size in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"):
        value = getattr(text, size, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{size} must be at least 1, got {shown(value)}")


def _context(hf: Any) -> tuple[int, float, str]:
    own = getattr(hf, "max_position_embeddings", None)
    if not own:
        raise ValueError("no max_position_embeddings: not a causal LM with RoPE")
    rope = getattr(hf, "rope_parameters", None) or {}
    rope_type = str(rope.get("rope_type", "default")) if isinstance(rope, dict) else "unknown"
    if rope and "rope_type" not in rope and any(isinstance(v, dict) for v in rope.values()):
        rope_type = "per layer"
    factor = float(rope.get("factor") or 1.0) if rope_type == "linear" else 1.0
    return int(own), factor, rope_type
