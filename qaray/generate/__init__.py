"""Papers → prompts → answers → pairs."""
