"""A chat endpoint that behaves as a paper's text says, to see what the engine makes of it:

    python -m tests.hostile_endpoint --port 8000

A request whose text contains ``behave:NAME`` gets the response of that name: of ``ONCE`` the first time only, of
``ALWAYS`` each time. All other requests are answered. ``/asked`` counts requests by behaviour, and lists the
Authorization headers of those that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from typing import Any

import click
from aiohttp import web

PAIRS = "Q1: What melts?\nA1: Compound 7 melts at 300 K.\n\nQ2: At what pressure?\nA2: At 1.5 bar."
THOUGHT = "Let me think. Q1: Is this a question? A1: It is a thought."


def chat(content: Any = PAIRS, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 50, "completion_tokens": 40},
    }


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", **more}}


# Behaviour → (status, body, headers). A body that is a string or bytes is sent as it is.
ONCE: dict[str, tuple[int, Any, dict[str, str]]] = {
    "429": (429, error("slow down"), {}),
    "429_after": (429, error("slow down"), {"Retry-After": "1"}),
    "429_date": (429, error("slow down"), {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429_within_200": (200, error("slow down", code=429), {}),
    "500": (500, error("an internal error"), {}),
    "502_html": (502, "<html><head><title>Bad</title></head><body>Bad Gateway</body></html>", {}),
    "503": (503, "overloaded", {}),
    "not_json": (200, '{"choices": [{"mess', {}),
    "200_with_error": (200, error("the model crashed"), {}),
    "no_choices": (200, {"choices": []}, {}),
    "choices_null": (200, {"choices": [None]}, {}),
    "choices_a_string": (200, {"choices": PAIRS}, {}),
    "a_list": (200, [1, 2], {}),
    "a_string": (200, '"hello"', {}),
    "a_number": (200, "7", {}),
    "null": (200, "null", {}),
    "empty": (200, "", {}),
    "nested": (200, "[" * 100_000, {}),
    "ten_megabytes": (200, json.dumps(chat("x" * 10_000_000)), {}),
    "gzip": (200, b"\x1f\x8b" + b"\0" * 40, {"Content-Encoding": "gzip"}),
    "closed": (200, None, {}),
    "drip": (200, None, {}),
}
ALWAYS: dict[str, tuple[int, Any, dict[str, str]]] = {
    "400": (400, error("your text is bad"), {}),
    "403": (403, error("blocked by a filter"), {}),
    "always_500": (500, error("an internal error"), {}),
    "always_503": (503, error("overloaded"), {}),
    "null_content": (200, chat(None), {}),
    "content_filter": (200, chat("Q1: What", "content_filter"), {}),
    "unknown_finish": (200, chat(finish="eos_token_or_so"), {}),
    "finish_null": (200, chat(finish=None), {}),
    "reasoning": (200, chat(reasoning_content=THOUGHT), {}),
    "reasoning_only": (200, chat(None, reasoning=THOUGHT), {}),
    "refusal": (200, chat(None, refusal="I cannot help with that."), {}),
    "parts": (200, chat([{"type": "thinking"}, {"type": "text", "text": PAIRS}]), {}),
    "surrogate": (200, json.dumps(chat("\ud800" + PAIRS)), {}),
    "usage_nonsense": (200, {**chat(), "usage": {"prompt_tokens": "many", "completion_tokens": -3}}, {}),
    "usage_a_list": (200, {**chat(), "usage": [1]}, {}),
    "wrong_model": (200, {**chat(), "model": "another-model"}, {}),
}


class HostileServer:
    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        routes = [web.get("/v1/models", self.models), web.post("/v1/chat/completions", self.chat)]
        app.add_routes([*routes, web.get("/asked", self.counts)])
        return app

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "hostile", "max_model_len": 4096}]})

    async def counts(self, _: web.Request) -> web.Response:
        return web.json_response({"asked": self.asked, "keys": sorted(self.keys)})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization", ""))
        body = await request.json()
        if not body["messages"]:
            return web.json_response(error("no message"), status=400)
        text = "\n".join(str(message["content"]) for message in body["messages"])
        found = re.search(r"behave:(\w+)", text)
        name = found[1] if found else "well"
        self.asked[name] += 1
        if name == "redirect":
            raise web.HTTPTemporaryRedirect("http://127.0.0.2:9/v1/chat/completions")
        if name == "expired":
            return web.json_response(error(f"Incorrect API key {request.headers.get('Authorization')}"), status=401)
        if name == "too_long" and len(text) > 6_000:
            words = (
                f"This model's maximum context length is 1500 tokens. However, you requested {len(text) // 4} tokens"
            )
            return web.json_response(error(words, code="context_length_exceeded"), status=400)
        if name == "no_stop" and "stop" in body:
            return web.json_response(error("Unsupported parameter: 'stop'", param="stop"), status=400)
        once = self.asked[name] == 1 and name in ONCE
        if name in ("closed", "drip") and once:
            return await self._slowly(request, closes=name == "closed")
        if not once and name not in ALWAYS:
            return web.json_response(chat())
        status, answer, headers = ONCE[name] if once else ALWAYS[name]
        if isinstance(answer, str | bytes):
            raw = answer.encode() if isinstance(answer, str) else answer
            return web.Response(status=status, body=raw, headers={"Content-Type": "application/json", **headers})
        return web.json_response(answer, status=status, headers=headers)

    async def _slowly(self, request: web.Request, closes: bool) -> web.StreamResponse:
        """A response that never ends, or whose connection is closed in the middle."""
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        while True:
            with contextlib.suppress(ConnectionError):  # the engine has gone
                await response.write(b'{"choices": ' if closes else b" ")
            if closes:
                request.transport.abort()  # type: ignore[union-attr]
                return response
            await asyncio.sleep(0.2)


@click.command()
@click.option("--port", default=8000)
def main(port: int) -> None:
    async def make() -> web.Application:
        return HostileServer().app()

    web.run_app(make(), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
