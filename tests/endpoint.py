"""The shipped endpoint without a model, whose answers a test can hold back:

    python -m tests.endpoint --port 8000 --base_model MODEL --gather 16 --answer 20

The first ``--gather`` requests are answered once all of them are in. Of all requests ``--answer`` are answered; the
others wait for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click
from aiohttp import web

from qaray.engines.echo_server import EchoServer


class HeldServer(EchoServer):
    def __init__(self, gather: int, answer: int | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.gather, self.answer, self.asked = gather, answer, 0
        self.gathered = asyncio.Event()

    async def completions(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.answer is not None and self.asked > self.answer:
            await asyncio.Event().wait()
        if self.asked >= self.gather:
            self.gathered.set()
        await self.gathered.wait()
        return await super().completions(request)


@click.command()
@click.option("--port", default=8000)
@click.option("--base_model", default="")
@click.option("--gather", default=0)
@click.option("--answer", type=int)
def main(port: int, base_model: str, gather: int, answer: int | None) -> None:
    rates = {"slots": 64, "prefill_rate": 1e9, "decode_rate": 1e9}

    async def make() -> web.Application:
        return HeldServer(gather, answer, base_model=base_model, cache_dir="./cache", **rates).app()

    web.run_app(make(), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
