"""Reads question-answer pairs from a model's output."""
