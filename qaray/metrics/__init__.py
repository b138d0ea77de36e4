"""Metrics on arrays and texts. Pure functions: no Ray, no torch."""
