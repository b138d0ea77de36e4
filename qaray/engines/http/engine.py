"""The engine for OpenAI-compatible endpoints.

One actor sends all requests, since it only waits for responses. Prompts without a response stay pending for the next
start; prompts that the endpoint refuses are rejected with its words. When the endpoint fails, what is in flight is
finished and saved before the run ends with its words.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from qaray.asking.grammar import parse_answer, write_pairs
from qaray.asking.templates import EstimatedTokenizer
from qaray.config import ConfigError, GenerateConfig
from qaray.engines.attempts import attempts, attempts_of
from qaray.engines.base import Engine
from qaray.engines.endings import ending
from qaray.engines.http.client import Client, NoResponse
from qaray.engines.http.desk import Desk
from qaray.engines.http.keys import find_key
from qaray.engines.http.pace import Gate, Pace
from qaray.engines.http.replies import Kind, Problem, Reply, read_reply
from qaray.engines.http.requests import PATHS, Dialect, request_body
from qaray.engines.http.spending import Spending
from qaray.engines.pool import Share
from qaray.models.planner import ModelPlan
from qaray.run.cluster import LIGHT
from qaray.run.errors import RunError
from qaray.run.stopping import StopSignal
from qaray.schema import (
    COMPLETION_SCHEMA,
    Completion,
    Failure,
    FinishReason,
    Prompt,
    RejectReason,
    complete,
    table,
)

if TYPE_CHECKING:
    from ray.data import Dataset

AHEAD = 2  # prompts held by the actor per request in flight
LEAST_JUDGED, JUDGED = 20, 200  # latest requests of which more than half may not fail
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0  # seconds before the first repetition of a failed request, and before later ones
LEAST_TEXT = 64  # characters of a paper that a prompt must keep
SHORTENED = 0.75  # part of the text that is kept if the endpoint does not say how much is too much
DEAREST = 1.5  # factor on a prompt's estimated tokens, for what it costs at most
MARGIN = 1.1  # factor on what is cut, since tokens differ in length
KEY_HINT = " (the key is read from QARAY_API_KEY, OPENAI_API_KEY or --api_key_file)"
CUT_REASONS = ("length", "max_tokens", "model_length", "max_length")


class HttpEngine(Engine):
    def __init__(self, config: GenerateConfig, plan: ModelPlan, should_stop: StopSignal) -> None:
        """``config`` names the model and the API: see ``discovery.reached``. Ray must be connected."""
        self.config, self.plan, self.should_stop = config, plan, should_stop
        self.desk = Desk.opened(find_key(config.endpoint.api_key_file))

    def describe(self) -> str:
        endpoint = self.config.endpoint
        pace = f", {endpoint.requests_per_second:g} a second" if endpoint.requests_per_second else ""
        at_once = f"up to {endpoint.requests_at_once} concurrent requests"
        return f"http: {endpoint.served_model} at {endpoint.base_url}, {endpoint.api}, {at_once}{pace}"

    def generate(self, prompts: Dataset, expected: int | None) -> Dataset:
        from ray.data import ActorPoolStrategy

        share = Share.of(self.config.endpoint.requests_at_once, AHEAD, 1, expected, most_rows=16)
        return share.blocks(prompts).map_batches(
            EndpointActor,
            fn_constructor_args=(self.config, self.plan.seq_len, self.desk, self.should_stop),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                size=1, max_tasks_in_flight_per_actor=share.in_flight, max_concurrent_calls_per_actor=share.calls
            ),
            num_cpus=LIGHT,
        )

    def resume(self, prompt_tokens: int, output_tokens: int) -> None:
        if cost := self.config.endpoint.cost(prompt_tokens, output_tokens):
            self.desk.open_account(cost)

    def check(self) -> None:
        if words := self.desk.ended():
            raise RunError(f"{self.config.endpoint.base_url}: {words}; completed work is saved: rerun to resume")

    def score(self, requests: Dataset) -> Dataset:
        raise ConfigError(
            "an endpoint does not return log-probabilities of given texts: use transformers or vllm for the judge"
        )


class Health:
    """How the latest requests went. Refusals with 429 do not count."""

    def __init__(self) -> None:
        self.answers = 0  # of all requests
        self._latest: deque[bool] = deque(maxlen=JUDGED)

    def add(self, answered: bool) -> None:
        self.answers += answered
        self._latest.append(answered)

    @property
    def failing(self) -> bool:
        """Whether more than half of the latest requests failed."""
        failed = self._latest.count(False)
        return len(self._latest) >= LEAST_JUDGED and 2 * failed > len(self._latest)


class EndpointActor:
    """Answers blocks of prompts: pyarrow.Table of Prompt → pyarrow.Table of Completion."""

    def __init__(self, config: GenerateConfig, seq_len: int, desk: Desk, should_stop: StopSignal) -> None:
        endpoint = config.endpoint
        self.config, self.seq_len, self.desk, self.should_stop = config, seq_len, desk, should_stop
        self.client = Client(
            str(endpoint.base_url), desk.key(), endpoint.request_timeout, connections=endpoint.requests_at_once
        )
        self.gate = Gate(Pace(endpoint.requests_at_once, endpoint.requests_per_second))
        self.retries = endpoint.http_retries
        self.health, self.dialect = Health(), Dialect()
        self.spending = Spending(endpoint.cost, endpoint.max_cost, desk.spent())
        self.ended = ""  # why no more requests are sent
        self.estimate = EstimatedTokenizer()
        self.scale = 1.0  # reported prompt tokens per estimated one, smoothed

    async def __call__(self, prompts: pa.Table) -> AsyncIterator[pa.Table]:
        rows = prompts.to_pylist()
        answers = await asyncio.gather(
            *(attempts_of(row, self._answer, attempts(self.config), self._stops) for row in rows)
        )
        yield table([answer for own in answers for answer in own], COMPLETION_SCHEMA)

    def _stops(self) -> bool:
        return bool(self.ended) or self.should_stop()

    async def _end(self, words: str) -> None:
        """Sends no more requests, and has the driver end the run once all that is in flight is saved."""
        if not self.ended:
            self.ended = words
            await self.desk.end(words)
            await asyncio.to_thread(self.should_stop.request)

    async def _answer(self, prompt: Prompt) -> Completion | None:
        """The answer to a prompt, None if it stays pending; one that is too long is treated as --overlength says."""
        prompt_tokens = int(prompt["prompt_tokens"] * self.scale)
        excess = prompt_tokens + min(prompt["max_tokens"], LEAST_TEXT) - self.seq_len
        if excess > 0:
            return await self._too_long(prompt, f"it has some {prompt_tokens} tokens, {self.seq_len} fit", excess)
        max_tokens = max(1, min(prompt["max_tokens"], self.seq_len - prompt_tokens))
        began = time.time()
        reply = await self._reply(prompt, max_tokens)
        if isinstance(reply, Reply):
            return self._completion(prompt, reply, began)
        if reply is None:
            return None
        if reply.kind is Kind.TOO_LONG:
            return await self._too_long(prompt, reply.words, reply.excess)
        return complete(prompt, failure=Failure.of(RejectReason.ENGINE_ERROR, f"the endpoint: {reply.words}"))

    async def _reply(self, prompt: Prompt, max_tokens: int) -> Reply | Problem | None:
        """The endpoint's answer, its refusal of this prompt, or None if the prompt stays pending."""
        body = request_body(self.config, prompt, max_tokens)
        failures = answers_before = 0
        refused_since = None  # first refusal with 429, seconds
        answers_then = 0  # answers of others until then
        while not self._stops():
            sent = self.dialect.without(body)
            result = await self._once(sent, prompt, max_tokens)
            if isinstance(result, Reply):
                return result
            if result is None:
                return None
            if result.kind is Kind.FATAL:
                await self._end(result.words + (KEY_HINT if result.words.startswith("401") else ""))
                return None
            if result.kind is Kind.LATER:
                if refused_since is None:
                    refused_since, answers_then = time.monotonic(), self.health.answers
                waited = time.monotonic() - refused_since
                if self.health.answers == answers_then and waited > self.config.endpoint.request_timeout:
                    await self._end(
                        f"it refused all requests for {self.config.endpoint.request_timeout:g} s: {result.words}"
                    )
                    return None
                continue
            if result.kind is Kind.PARAMETER:
                self.dialect.refused.add(result.parameter)
                if self.dialect.without(body) != sent:
                    continue
            self.health.add(answered=result.kind is Kind.TOO_LONG)
            if self.health.failing:
                await self._end(f"more than half of its latest responses were failures, the last one {result.words}")
                return None
            if result.kind in (Kind.REFUSED, Kind.TOO_LONG, Kind.PARAMETER):
                return result
            failures += 1
            if failures == 1:
                answers_before = self.health.answers
            if failures > self.retries:
                if self.health.answers > answers_before or await self._probe(prompt):
                    return result  # the endpoint answers others: it is this prompt
                await self._end(f"it stopped responding ({result.words})")
                return None
            await self._pause(failures, result.retry_after)
        return None

    async def _probe(self, prompt: Prompt) -> bool:
        """Whether the endpoint answers a request of a few tokens, as it would have to answer any prompt."""
        probe = Prompt(**{**prompt, "prompt": "Say yes.", "token_ids": []})
        body = self.dialect.without(request_body(self.config, probe, 1))
        return not self._stops() and isinstance(await self._once(body, probe, 1), Reply)

    async def _pause(self, failures: int, retry_after: float | None) -> None:
        seconds = min(LONGEST_BACKOFF, BACKOFF * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        end = time.monotonic() + max(seconds, min(retry_after or 0.0, LONGEST_BACKOFF))
        while (left := end - time.monotonic()) > 0 and not self._stops():
            await asyncio.sleep(min(left, 1.0))

    async def _once(self, body: dict[str, Any], prompt: Prompt, max_tokens: int) -> Reply | Problem | None:
        """Sends a request when the pace and the money allow it. None: the run stops."""
        pace, clock = self.gate.pace, time.monotonic
        most = self.spending.most_of(DEAREST * self.scale * prompt["prompt_tokens"], max_tokens)
        async with self.gate.passing():
            if not await self._can_pay(most) or self._stops():
                pace.ended()
                return None
            self.spending.hold(most)
            begun, paid = clock(), (0.0, 0.0)
            try:
                result = read_reply(await self.client.post(PATHS[self.config.endpoint.api], body))
                if isinstance(result, Reply):
                    result = self._with_usage(result, prompt)
                    paid = (result.prompt_tokens or 0, result.output_tokens or 0)
            except NoResponse as error:
                result = Problem(Kind.OVERLOADED if error.late else Kind.AGAIN, str(error))
                if error.late:  # it may be charged all the same
                    paid = (prompt["prompt_tokens"] * self.scale, max_tokens)
            except BaseException:
                pace.ended()
                raise
            finally:
                if cost := self.spending.settle(most, *paid):
                    self.desk.pay(cost)
            if isinstance(result, Reply):
                self.health.add(answered=True)
                pace.answered(clock(), clock() - begun)
            elif result.kind is Kind.LATER:
                pace.refused(clock(), result.retry_after)
            elif result.kind is Kind.OVERLOADED:
                pace.overloaded(clock())
            else:
                pace.ended()
        return result

    async def _can_pay(self, cost: float) -> bool:
        """Waits until a request of at most this cost is within --max_cost; False if it is not, and the run ends."""
        while not self.spending.allows(cost):
            if not self.spending.in_flight or self._stops():
                spent, most = self.spending.spent, self.config.endpoint.max_cost
                await self._end(f"--max_cost {most:g} is reached: {spent:,.4f} are spent")
                return False
            await asyncio.sleep(0.1)
        return True

    def _with_usage(self, reply: Reply, prompt: Prompt) -> Reply:
        """The reply with the numbers of tokens that the endpoint reports, else with estimates."""
        estimated = prompt["prompt_tokens"]
        if reply.prompt_tokens:
            self.scale += 0.1 * (reply.prompt_tokens / max(1, estimated) - self.scale)
        else:
            reply = reply._replace(prompt_tokens=int(estimated * self.scale))
        if reply.output_tokens is None:
            (written,) = self.estimate.count([reply.reasoning + reply.text])
            reply = reply._replace(output_tokens=written)
        return reply

    def _completion(self, prompt: Prompt, reply: Reply, began: float) -> Completion:
        prompt = Prompt(**{**prompt, "prompt_tokens": reply.prompt_tokens or prompt["prompt_tokens"]})
        filtered = reply.finish_reason == "content_filter"
        at_limit = reply.finish_reason in CUT_REASONS
        text, reason = ending(
            prompt["opening"] + reply.text, [], prompt["num_qas"], at_limit=at_limit, ended=not at_limit
        )
        if reply.reasoning:
            text = f"<think>\n{reply.reasoning.replace('</think>', '')}\n</think>\n\n{text}"
        return complete(
            prompt,
            text,
            output_tokens=reply.output_tokens or 0,
            finish_reason=FinishReason.CONTENT_FILTER if filtered else reason,
            seconds=time.time() - began,
            began=began,
            worker=str(self.config.endpoint.base_url),
        )

    # Prompts that are too long for the endpoint

    async def _too_long(self, prompt: Prompt, words: str, excess: int | None) -> Completion | None:
        """Shortens, splits or rejects a prompt that the endpoint does not take."""
        text = prompt["paper_end"] - prompt["paper_start"]
        if self.config.asking.overlength == "skip" or text <= LEAST_TEXT:
            return complete(prompt, failure=Failure.of(RejectReason.OVER_LENGTH, f"the endpoint: {words}"))
        if self.config.asking.overlength == "split":
            return await self._in_halves(prompt)
        kept = text * SHORTENED
        if excess:
            per_token = len(prompt["prompt"]) / max(1.0, prompt["prompt_tokens"] * self.scale)
            kept = min(text - 1, max(text - MARGIN * per_token * excess, text / 4))
        part = part_of(prompt, 0, max(LEAST_TEXT, int(kept)), prompt["num_qas"])
        lost = prompt["truncated_tokens"] + prompt["prompt_tokens"] - part["prompt_tokens"]
        return await self._answer(Prompt(**{**part, "truncated_tokens": lost}))

    async def _in_halves(self, prompt: Prompt) -> Completion | None:
        """Asks about both halves of the prompt's text; their pairs become one answer."""
        text = prompt["prompt"][prompt["paper_start"] : prompt["paper_end"]]
        middle = text.find(" ", len(text) // 2, len(text) - 1)
        middle = middle if middle > 0 else len(text) // 2
        wanted = prompt["num_qas"]
        halves = [
            part_of(prompt, 0, middle, -(-wanted // 2)),
            part_of(prompt, middle, len(text), max(1, wanted // 2)),
        ]
        first, second = await asyncio.gather(*map(self._answer, halves))
        if first is None or second is None:
            return None
        for half in (first, second):
            if half["reason"] is not None:
                return Completion(**{**half, "start": prompt["start"], "end": prompt["end"], "num_qas": wanted})
        pairs = [
            pair
            for half in (first, second)
            for pair in parse_answer(half["output"], half["num_qas"], half["finish_reason"]).pairs
        ]
        merged: Any = {**first, "start": prompt["start"], "end": prompt["end"], "num_qas": wanted}
        merged |= {"output": write_pairs(pairs), "finish_reason": second["finish_reason"]}
        for name in ("prompt_tokens", "output_tokens", "truncated_tokens"):
            merged[name] = first[name] + second[name]
        begun = min(first["began"], second["began"])
        merged |= {"began": begun, "seconds": max(h["began"] + h["seconds"] for h in (first, second)) - begun}
        return cast(Completion, merged)


def part_of(prompt: Prompt, begin: int, end: int, num_qas: int) -> Prompt:
    """The prompt with only characters ``begin`` to ``end`` of its part of the paper, asking for ``num_qas`` pairs."""
    start, stop = prompt["paper_start"], prompt["paper_end"]
    text = prompt["prompt"][start:stop][begin:end]
    tokens_per_character = prompt["prompt_tokens"] / max(1, len(prompt["prompt"]))
    removed = int((stop - start - len(text)) * tokens_per_character)
    return Prompt(
        **{
            **prompt,
            "prompt": prompt["prompt"][:start] + text + prompt["prompt"][stop:],
            "token_ids": [],
            "paper_end": start + len(text),
            "start": prompt["start"] + begin,
            "end": prompt["start"] + begin + len(text),
            "num_qas": num_qas,
            "prompt_tokens": max(1, prompt["prompt_tokens"] - removed),
        }
    )
