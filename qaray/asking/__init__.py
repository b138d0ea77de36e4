"""Prompts for the model, and parsing of its answers."""
