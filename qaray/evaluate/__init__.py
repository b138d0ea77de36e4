"""Evaluation of pairs: coverage, similarity, RACAR, grounding."""
