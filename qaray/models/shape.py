"""Model dimensions for FLOP and memory estimates: parameters, layers, bytes of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from qaray.config import EngineConfig
from qaray.models.catalogue import resolve
from qaray.models.loading import load_config, quiet_transformers


@dataclass(frozen=True)
class ModelShape:
    """Model dimensions for FLOP and memory estimates."""

    parameters: int  # without an untied input embedding
    layers: int
    width: int  # width of a layer's queries: heads · head size
    kv_bytes: int  # KV cache of one token in all layers
    weight_bytes: int


def model_shape(config: EngineConfig, dtype: str) -> ModelShape:
    """The dimensions of the configuration's model, with weights and KV cache in ``dtype``."""
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
    tied = getattr(text, "tie_word_embeddings", False)  # the embedding is also the LM head
    embedding = 0 if tied else model.get_input_embeddings().weight.numel()
    parameters = sum(each.numel() for each in model.parameters()) - embedding
    layers = text.num_hidden_layers
    return ModelShape(parameters, layers, heads * head_dim, 2 * layers * kv_heads * head_dim * size, parameters * size)
