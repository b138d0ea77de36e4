"""The engine on transformers: slots of keys and values, continuous batching, scores from shared prefixes."""
