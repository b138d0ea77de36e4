"""Models: names, tokenizers, RoPE, the train→inference contract, hardware."""
