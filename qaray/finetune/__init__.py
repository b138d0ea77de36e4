"""Fine-tuning: the original's command on Ray Train with DeepSpeed."""
