"""The engine for OpenAI-compatible endpoints: chat and completions, paced by what the endpoint takes."""
