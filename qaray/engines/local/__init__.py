"""The transformers engine: slot key-value cache, continuous batching, scoring with shared prefixes."""
