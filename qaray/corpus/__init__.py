"""Ingest: files → records → papers, without duplicates."""
