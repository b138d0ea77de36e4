"""The engine for OpenAI-compatible endpoints, built on ray.data.llm's HTTP processor.

One actor sends all requests, since it only waits for responses. Prompts are sent as token ids to ``/completions``, so
the run's own template and BOS apply. Prompts without a response (endpoint unreachable or overloaded) stay pending for
the next round; prompts that the endpoint refuses are rejected with its error message.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qaray.asking.grammar import json_schema, stop_strings
from qaray.config import ConfigError, GenerateConfig
from qaray.engines.attempts import as_completed, attempts, attempts_of, select, stream_seed, unpacked
from qaray.engines.endings import ending
from qaray.engines.pool import Share
from qaray.run.cluster import LIGHT, quiet_llm
from qaray.run.errors import RunError
from qaray.run.stopping import StopCheck
from qaray.schema import PROMPT_COLUMNS, Completion, Failure, Prompt, RejectReason, complete

if TYPE_CHECKING:
    from ray.data import Dataset

KEY = "QARAY_API_KEY"  # environment variable with the endpoint's API key, which is never stored
STAGE = "HttpRequestStage"
MOST_STOPS = 4  # stop strings that the API accepts
MOST_FAILURES = 16  # consecutive requests without a response that end the run
AHEAD = 2  # prompts held by the actor per request in flight
# Status codes that the request did not cause: the prompt stays pending.
NOT_THE_PROMPT = (401, 403, 404, 408, 409, 429, *range(500, 600))


class HttpEngine:
    def __init__(self, config: GenerateConfig, should_stop: StopCheck) -> None:
        """Raises ConfigError unless the endpoint responds and serves the model."""
        self.config, self.should_stop = config, should_stop
        self.model = _served_model(config)

    def describe(self) -> str:
        pace = (
            f", {self.config.endpoint.requests_per_second:g} a second"
            if self.config.endpoint.requests_per_second
            else ""
        )
        at_once = f"{self.config.endpoint.requests_at_once} concurrent requests"
        return f"http: {self.model} at {self.config.endpoint.base_url}, {at_once}{pace}"

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        from ray.data import ActorPoolStrategy

        with quiet_llm():
            from ray.data.llm import HttpRequestProcessorConfig, build_processor

        config, light = self.config, {"num_cpus": LIGHT}
        share = Share.of(config.endpoint.requests_at_once, AHEAD, 1, expected, most_rows=16)
        processor = build_processor(
            HttpRequestProcessorConfig(
                url=f"{str(config.endpoint.base_url).rstrip('/')}/completions",
                headers=_headers(),
                max_retries=config.endpoint.http_retries,
                session_factory=_Sessions(config.endpoint.request_timeout),
                batch_size=share.rows,
                http_request_stage={"num_cpus": LIGHT},
            ),
            preprocess=_with_payload,
            postprocess=_EndpointRequests.keep,
            preprocess_map_kwargs=light,
            postprocess_map_kwargs=light,
        )
        stage = processor.get_stage_by_name(STAGE)
        pool = ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=share.in_flight)
        changes = {
            "fn": _stage_with(stage.fn, _EndpointRequests(config, self.model, self.should_stop), config),
            "map_batches_kwargs": {**stage.map_batches_kwargs, "compute": pool, "max_concurrency": share.calls},
        }
        processor.stages[STAGE] = stage.model_copy(update=changes)
        columns = [*PROMPT_COLUMNS, "prompt"]
        done = processor(share.blocks(prompts).select_columns(columns))
        return done.map_batches(unpacked, batch_size=None, batch_format="pyarrow", num_cpus=LIGHT)

    def score(self, requests: Dataset) -> Dataset:
        raise ConfigError(
            "an endpoint does not return log-probabilities of given texts: use transformers or vllm for the judge"
        )


def _stage_with(stage: type, work: _EndpointRequests, config: GenerateConfig) -> type:
    """ray.data.llm's HTTP stage with all requests of its batches in flight concurrently, within the limits."""

    class BoundedStage(stage):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.gate = Gate(config.endpoint.requests_at_once, config.endpoint.requests_per_second)
            self.failures = 0  # consecutive

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            index_column = self.IDX_IN_BATCH_COLUMN

            async def endpoint(payload: dict[str, Any]) -> dict[str, Any]:
                """The response; raises RunError after too many consecutive requests without one."""
                try:
                    async with self.gate:
                        async for output in super(BoundedStage, self).udf([{"payload": payload, index_column: 0}]):
                            self.failures = 0
                            return output["http_response"]
                except Exception as error:  # no transport error is a reason to reject the prompt
                    self.failures += 1
                    if self.failures >= max(MOST_FAILURES, config.endpoint.requests_at_once):
                        cause = str(error).partition("Previous Exception: ")[2].partition(". Full")[0] or repr(error)
                        raise RunError(f"{config.endpoint.base_url} stopped responding ({cause})") from None
                return {"error": {"code": 503, "message": "no response"}}

            async def answer(row: dict[str, Any]) -> dict[str, Any]:
                return {**await work(row, endpoint), index_column: row[index_column]}

            async for done in as_completed([answer(row) for row in batch]):
                yield done

    return BoundedStage


class Gate:
    """Limits requests to ``at_once`` concurrent ones and ``per_second`` starts per second."""

    def __init__(self, at_once: int, per_second: float | None) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._interval = 1 / per_second if per_second else 0.0  # seconds between starts
        self._next = 0.0

    async def __aenter__(self) -> None:
        await self._slots.acquire()
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._interval
        if begin > now:
            await asyncio.sleep(begin - now)

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()


@dataclass(frozen=True)
class _Sessions:
    """Picklable factory of the HTTP stage's sessions."""

    timeout: float  # seconds per request

    def __call__(self) -> Any:
        import aiohttp

        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout))


@dataclass(frozen=True)
class _EndpointRequests:
    """Answers prompts through the endpoint."""

    config: GenerateConfig
    model: str
    should_stop: StopCheck

    async def __call__(self, row: dict[str, Any], endpoint: Any) -> dict[str, Any]:
        prompt: Prompt = select(row, PROMPT_COLUMNS)
        text = row["prompt"]

        async def once(attempt: Prompt) -> Completion | None:
            began = time.time()
            return self._completion(attempt, await endpoint(self._payload(attempt, text)), began)

        return {"answers": await attempts_of(prompt, once, attempts(self.config), self.should_stop)}

    @staticmethod
    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {"answers": row["answers"]}

    def _payload(self, prompt: Prompt, text: str) -> dict[str, Any]:
        config = self.config
        payload: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt["token_ids"] or text,
            "max_tokens": prompt["max_tokens"],
            "temperature": config.sampling.temperature,
            "top_p": config.sampling.top_p,
            "seed": stream_seed(config.sampling.seed, prompt["doi"], prompt["window"], prompt["attempt"]) % 2**31,
        }
        if config.asking.structured:
            schema = {"name": "pairs", "schema": json_schema(prompt["num_qas"])}
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif config.sampling.min_gen_len:
            payload["min_tokens"] = config.sampling.min_gen_len
        else:
            payload["stop"] = stop_strings(prompt["num_qas"])[:MOST_STOPS]
        return payload

    def _completion(self, prompt: Prompt, response: dict[str, Any], began: float) -> Completion | None:
        choices = response.get("choices")
        if not choices:
            code, words = _refusal(response)
            if code in NOT_THE_PROMPT:
                return None
            return complete(prompt, failure=Failure.of(RejectReason.ENGINE_ERROR, f"the endpoint: {words}"))
        text, finish = choices[0].get("text") or "", choices[0].get("finish_reason")
        text, reason = ending(
            prompt["opening"] + text, [], prompt["num_qas"], at_limit=finish == "length", ended=finish == "stop"
        )
        usage = response.get("usage") or {}
        return complete(
            prompt,
            text,
            output_tokens=int(usage.get("completion_tokens") or 0),
            finish_reason=reason,
            seconds=time.time() - began,
            began=began,
            worker=str(self.config.endpoint.base_url),
        )


def _refusal(response: dict[str, Any]) -> tuple[int, str]:
    """(status code, message) of a response without a completion; the code is 0 if there is none."""
    error = response.get("error")
    fields = error if isinstance(error, dict) else response
    code: Any = fields.get("code", fields.get("status", 0))
    words = fields.get("message") or fields.get("detail") or (error if isinstance(error, str) else "no completion")
    return int(code) if str(code).isdigit() else 0, str(words)


def _with_payload(row: dict[str, Any]) -> dict[str, Any]:
    """Adds the column that the stage requires; the actual payload is built for each request."""
    return {"payload": ""}


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}


def _served_model(config: GenerateConfig) -> str:
    """Name of the model at the endpoint. Raises ConfigError if the endpoint fails or does not serve the model."""
    url = f"{str(config.endpoint.base_url).rstrip('/')}/models"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=_headers()), timeout=30) as response:
            served = [str(model["id"]) for model in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        hint = f": set {KEY}" if error.code in (401, 403) else ""
        raise ConfigError(
            f"--base_url {config.endpoint.base_url}: {url} answers {error.code} {error.reason}{hint}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--base_url {config.endpoint.base_url}: not an OpenAI-compatible endpoint ({error})"
        ) from None
    wanted = config.endpoint.served_model or (served[0] if served else "")
    if wanted not in served:
        raise ConfigError(
            f"--served_model {wanted}: {config.endpoint.base_url} serves {', '.join(served) or 'no model'}"
        )
    return wanted
