"""What the arithmetic of a model depends on: parameters, layers, bytes of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from qaray.config import EngineConfig
from qaray.models.catalogue import resolve
from qaray.models.loading import load_config, quiet_transformers


@dataclass(frozen=True)
class ModelShape:
    """What the arithmetic of a model depends on."""

    parameters: int  # without the input embedding
    layers: int
    width: int  # of a layer's queries: heads · head size
    kv_bytes: int  # keys and values of one token, all layers
    weight_bytes: int


def model_shape(config: EngineConfig, dtype: str) -> ModelShape:
    """What the arithmetic of the configuration's model depends on, its weights in the dtype of that name."""
    import torch
    from transformers import AutoModelForCausalLM

    name = config.model_name or ""
    hf = load_config(
        resolve(name, config.model.cache_dir), config.model.cache_dir, config.model.trust_remote_code, name
    )
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(hf, trust_remote_code=config.model.trust_remote_code)
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
