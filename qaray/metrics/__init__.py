"""Metrics: numbers from arrays and texts. Pure: no Ray, no model."""
