"""Models: names, tokenizers, RoPE scaling, the train→inference contract, hardware."""
