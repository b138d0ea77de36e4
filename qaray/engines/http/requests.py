"""Requests to an endpoint: a prompt as chat messages or as a completion, in the words that this endpoint takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qaray.asking.grammar import json_schema, stop_strings
from qaray.asking.templates import SYSTEM
from qaray.config import GenerateConfig
from qaray.engines.attempts import stream_seed
from qaray.schema import Prompt

MOST_STOPS = 4  # stop strings that the API accepts
PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass
class Dialect:
    """What an endpoint takes, learned from what it refuses. Every parameter here is optional in the API."""

    refused: set[str] = field(default_factory=set)

    def without(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request as this endpoint takes it."""
        body = dict(body)
        if "max_tokens" in self.refused and "max_completion_tokens" not in self.refused:
            body["max_completion_tokens"] = body["max_tokens"]  # OpenAI's reasoning models
        if "system" in self.refused and "messages" in body:
            texts = [message["content"] for message in body["messages"]]
            body["messages"] = [{"role": "user", "content": "\n\n".join(texts)}]
        return {name: value for name, value in body.items() if name not in self.refused}


def request_body(config: GenerateConfig, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
    """The body of the request for a prompt."""
    seed = stream_seed(config.sampling.seed, prompt["doi"], prompt["window"], prompt["attempt"])
    body: dict[str, Any] = {
        "model": config.endpoint.served_model,
        "max_tokens": max_tokens,
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "seed": seed % 2**31,
    }
    if config.endpoint.api == "chat":
        body["messages"] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": prompt["prompt"]},
        ]
    else:
        body["prompt"] = prompt["token_ids"] or prompt["prompt"]
    if config.asking.structured:
        schema = {"name": "pairs", "schema": json_schema(prompt["num_qas"])}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif config.sampling.min_gen_len:
        body["min_tokens"] = config.sampling.min_gen_len
    else:
        body["stop"] = stop_strings(prompt["num_qas"])[:MOST_STOPS]
    return body
