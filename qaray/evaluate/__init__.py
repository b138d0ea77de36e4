"""Pairs → scores: coverage, similarity, RACAR, grounding."""
