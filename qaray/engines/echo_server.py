"""An OpenAI-compatible endpoint without a model, at the speed of one: to try ``--engine http``, and to measure it.

    python -m qaray.engines.echo_server --port 8000 --base_model bundled:smollm2-135m --slots 64

A request waits for one of ``--slots`` places, keeps it for as long as reading and writing would take, and is answered
with pairs from the prompt's own sentences. ``/stats`` says how well the places were filled, from the first request to
the last answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
from aiohttp import web

from qaray.asking.grammar import write_pairs
from qaray.engines.echo import echo_pairs
from qaray.models.tokenizer import load_tokenizer
from qaray.schema import QA

PAIRS = 5  # per answer


class EchoServer:
    """State of the endpoint. ``prefill_rate`` and ``decode_rate`` are tokens per second and slot."""

    def __init__(self, slots: int, prefill_rate: float, decode_rate: float, base_model: str, cache_dir: str) -> None:
        self.slots, self.prefill_rate, self.decode_rate = slots, prefill_rate, decode_rate
        self.tokenizer = load_tokenizer(base_model, cache_dir) if base_model else None
        self.free = asyncio.Semaphore(slots)
        self.served = self.refused = self.in_use = 0
        self.place_seconds = 0.0
        self.begun = self.ended = 0.0
        self._last = time.monotonic()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.add_routes(
            [
                web.get("/v1/models", self.models),
                web.post("/v1/completions", self.completions),
                web.get("/stats", self.stats),
            ]
        )
        return app

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "echo", "object": "model"}]})

    async def stats(self, _: web.Request) -> web.Response:
        wall = self.ended - self.begun
        return web.json_response(
            {
                "served": self.served,
                "refused": self.refused,
                "busy_share": self.place_seconds / (wall * self.slots) if wall > 0 else None,
                "seconds": wall,
            }
        )

    def _count(self, change: int) -> None:
        """Accumulates slot-seconds since the last change, then adds ``change`` to the slots in use."""
        now = time.monotonic()
        self.place_seconds += self.in_use * (now - self._last)
        self._last = now
        self.in_use += change

    async def completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        refusal = _refusal(body)
        if refusal:
            self.refused += 1
            return web.json_response({"error": {"message": refusal, "code": 400}}, status=400)
        self.begun = self.begun or time.monotonic()
        async with self.free:
            self._count(1)
            try:
                answer = self._answer(body["prompt"], body["max_tokens"])
                read, written = answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]
                await asyncio.sleep(read / self.prefill_rate + written / self.decode_rate)
            finally:
                self._count(-1)
                self.ended = time.monotonic()
        self.served += 1
        return web.json_response(answer)

    def _answer(self, prompt: Any, max_tokens: int) -> dict[str, Any]:
        ids = prompt if isinstance(prompt, list) else None
        text = prompt if ids is None else self.tokenizer.decode(ids) if self.tokenizer else ""
        pairs = echo_pairs(text, PAIRS) or [QA(Q="What is known about the echo?", A="It repeats what it was sent.")]
        output = write_pairs(pairs)
        words = output.split(" ")
        cut = len(words) > max_tokens
        return {
            "object": "text_completion",
            "model": "echo",
            "choices": [
                {"index": 0, "text": " ".join(words[:max_tokens]), "finish_reason": "length" if cut else "stop"}
            ],
            "usage": {
                "prompt_tokens": len(ids) if ids is not None else len(text.split()),
                "completion_tokens": min(len(words), max_tokens),
            },
        }


def _refusal(body: dict[str, Any]) -> str | None:
    """Error message for a request that a server would reject; None for a valid request."""
    if not body.get("prompt"):
        return "prompt is empty"
    if not 0 <= body.get("temperature", 1.0) <= 2:
        return f"temperature must be in [0, 2], got {body['temperature']}"
    return None


@click.command(help=__doc__)
@click.option("--port", default=8000)
@click.option("--slots", default=64, help="requests that are worked on together")
@click.option("--prefill_rate", default=20000.0, help="prompt tokens a second, of one place")
@click.option("--decode_rate", default=50.0, help="answer tokens a second, of one place")
@click.option("--base_model", default="", help="whose tokenizer turns token ids to text; '' = prompts are not read")
@click.option("--cache_dir", default="./cache")
def main(port: int, **settings: Any) -> None:
    async def make() -> web.Application:
        return EchoServer(**settings).app()

    web.run_app(make(), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
