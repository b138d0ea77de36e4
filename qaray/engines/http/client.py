"""The connection to an endpoint: the ``openai`` client, bounded in time and size, which follows no redirect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import openai

from qaray.engines.http.keys import HIDDEN, without_key

MOST_BYTES = 8 << 20  # of a response: fifty times the longest answer
CONNECT_SECONDS = 20.0


@dataclass(frozen=True)
class Response:
    """What the endpoint sent, without the key."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class NoResponse(Exception):
    """The endpoint sent no usable response; the message says why. ``late``: within the time it had."""

    def __init__(self, words: str, late: bool = False) -> None:
        super().__init__(words)
        self.late = late


class Client:
    """Sends requests to one endpoint. To be used in one event loop."""

    def __init__(self, base_url: str, key: str | None, timeout: float, connections: int = 4) -> None:
        """``timeout``: seconds of a request, from its start to the last byte; ``connections``: at most so many."""
        self.key, self.timeout = key, timeout
        self._options: Any = {} if key else {"headers": {"Authorization": openai.Omit()}}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        proxy = _proxy(base_url)
        transport = _Bounded(httpx.AsyncHTTPTransport(limits=limits, proxy=proxy))
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",
            organization="",
            project="",
            max_retries=0,
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            default_headers={"Accept-Encoding": "identity"},
            http_client=httpx.AsyncClient(transport=transport, follow_redirects=False),
        )

    async def get(self, path: str) -> Response:
        return await self._request(self._openai.get(path, cast_to=httpx.Response, options=self._options))

    async def post(self, path: str, body: dict[str, Any]) -> Response:
        """Raises NoResponse if the connection fails, or the response is late or too large."""
        return await self._request(self._openai.post(path, cast_to=httpx.Response, body=body, options=self._options))

    async def _request(self, request: Any) -> Response:
        try:
            async with asyncio.timeout(self.timeout):
                response = await request
        except openai.APIStatusError as error:
            response = error.response
        except (TimeoutError, openai.APITimeoutError):
            raise NoResponse(f"no response within {self.timeout:g} s", late=True) from None
        except (openai.APIConnectionError, httpx.HTTPError, OSError, ValueError) as error:
            raise NoResponse(self._words(error)) from None
        # An endpoint may repeat the key in what it says.
        headers = {name: without_key(value, self.key) for name, value in response.headers.items()}
        body = response.content.replace(self.key.encode(), HIDDEN.encode()) if self.key else response.content
        return Response(response.status_code, headers, body)

    def _words(self, error: BaseException) -> str:
        """The cause of a failed connection, in one line."""
        cause = error.__cause__ or error.__context__ or error
        words = str(cause) or type(cause).__name__
        return without_key(" ".join(words.split())[:300], self.key)

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._openai.close()


class _Bounded(httpx.AsyncBaseTransport):
    """Ends a response that is larger than MOST_BYTES, or compressed though nobody asked for it."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            await response.aclose()
            raise httpx.DecodingError("the response is compressed, which was not asked for", request=request)
        response.stream = _BoundedStream(response.stream, request)
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, stream: Any, request: httpx.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        async for chunk in self._stream:
            received += len(chunk)
            if received > MOST_BYTES:
                raise httpx.ReadError(f"the response is larger than {MOST_BYTES >> 20} MiB", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _proxy(base_url: str) -> str | None:
    """The proxy that the environment names for the endpoint (HTTPS_PROXY, NO_PROXY)."""
    parts = urllib.parse.urlsplit(base_url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def as_json(body: bytes) -> Any:
    """The JSON of a body, None if it is none."""
    try:
        return json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
