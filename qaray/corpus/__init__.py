"""Papers in: files → records → papers, each once."""
