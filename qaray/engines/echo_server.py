"""An OpenAI-compatible endpoint without a model, at the speed of one: to try ``--engine http``, and to measure it.

    python -m qaray.engines.echo_server --port 8000 --slots 64

A request waits for one of ``--slots`` places, keeps it for as long as reading and writing would take, and is answered
with pairs from the prompt's own sentences, as a chat or as a completion. ``/stats`` says how well the places were
filled, from the first request to the last answer.
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
    """State of the endpoint.

    ``prefill_rate`` and ``decode_rate`` are tokens per second and slot; ``per_second`` requests start at most, others
    are refused with 429.
    """

    def __init__(
        self,
        slots: int,
        prefill_rate: float,
        decode_rate: float,
        base_model: str,
        cache_dir: str,
        per_second: float | None = None,
    ) -> None:
        self.slots, self.prefill_rate, self.decode_rate = slots, prefill_rate, decode_rate
        self.tokenizer = load_tokenizer(base_model, cache_dir) if base_model else None
        self.free = asyncio.Semaphore(slots)
        self.per_second, self._allowed, self._asked = per_second, per_second or 0.0, time.monotonic()
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
                web.post("/v1/chat/completions", self.completions),
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
        if refusal := _refusal(body):
            self.refused += 1
            return web.json_response({"error": {"message": refusal, "code": 400}}, status=400)
        if not self._allows():
            self.refused += 1
            return web.json_response({"error": {"message": "too many requests", "code": 429}}, status=429)
        self.begun = self.begun or time.monotonic()
        async with self.free:
            self._count(1)
            try:
                answer = self._answer(body)
                read, written = answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]
                await asyncio.sleep(read / self.prefill_rate + written / self.decode_rate)
            finally:
                self._count(-1)
                self.ended = time.monotonic()
        self.served += 1
        return web.json_response(answer)

    def _allows(self) -> bool:
        """Whether a request may start now: a bucket with the requests of a second."""
        if self.per_second is None:
            return True
        now = time.monotonic()
        self._allowed = min(self.per_second, self._allowed + (now - self._asked) * self.per_second)
        self._asked = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        chat, prompt = "messages" in body, body.get("prompt")
        ids = prompt if isinstance(prompt, list) else None
        text = self.tokenizer.decode(ids) if ids and self.tokenizer else str(prompt or "")
        if chat:
            text = "\n".join(str(message.get("content") or "") for message in body["messages"])
        pairs = echo_pairs(text, PAIRS) or [QA(Q="What is known about the echo?", A="It repeats what it was sent.")]
        most = int(body.get("max_tokens") or body.get("max_completion_tokens") or 1 << 30)
        words = write_pairs(pairs).split(" ")
        output = " ".join(words[:most])
        said = {"message": {"role": "assistant", "content": output}} if chat else {"text": output}
        read, written = len(ids) if ids is not None else len(text.split()), min(len(words), most)
        return {
            "object": "chat.completion" if chat else "text_completion",
            "model": "echo",
            "choices": [{"index": 0, **said, "finish_reason": "length" if len(words) > most else "stop"}],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }


def _refusal(body: dict[str, Any]) -> str | None:
    """Error message for a request that a server would reject; None for a valid request."""
    if not body.get("prompt") and not body.get("messages"):
        return "there is neither a prompt nor a message"
    if not 0 <= body.get("temperature", 1.0) <= 2:
        return f"temperature must be in [0, 2], got {body['temperature']}"
    return None


@click.command(help=__doc__)
@click.option("--port", default=8000)
@click.option("--slots", default=64, help="requests that are worked on together")
@click.option("--prefill_rate", default=20000.0, help="prompt tokens a second, of one place")
@click.option("--decode_rate", default=50.0, help="answer tokens a second, of one place")
@click.option("--per_second", type=float, help="requests that may start a second; others get 429")
@click.option("--base_model", default="", help="whose tokenizer turns token ids to text; '' = prompts are not read")
@click.option("--cache_dir", default="./cache")
def main(port: int, **settings: Any) -> None:
    async def make() -> web.Application:
        return EchoServer(**settings).app()

    web.run_app(make(), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
