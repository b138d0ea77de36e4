"""Fine-tuning: examples → training processes → a model."""
