"""Embedding of texts and papers."""
