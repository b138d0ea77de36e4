"""The actor that sends requests, without Ray, against the hostile endpoint in this process."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from qaray.asking.prompts import PromptBuilder
from qaray.asking.templates import MESSAGES, EstimatedTokenizer
from qaray.config import ConfigError, GenerateConfig
from qaray.engines.http.client import Client, NoResponse
from qaray.engines.http.discovery import reached
from qaray.engines.http.engine import EndpointActor, part_of
from qaray.schema import PROMPT_SCHEMA, table
from tests.conftest import make_paper
from tests.hostile_endpoint import HostileServer


class LocalDesk:
    """The desk, in this process."""

    def __init__(self, key=None):
        self.own_key, self.words, self.cost = key, "", 0.0

    def key(self):
        return self.own_key

    def spent(self):
        return 0.0

    def pay(self, cost):
        self.cost += cost

    async def end(self, words):
        self.words = self.words or words


class LocalStop:
    def __init__(self):
        self.asked = False

    def __call__(self):
        return self.asked

    def request(self):
        self.asked = True


def config(url, **more):
    values = {"num_qas": 2, "max_attempts": 1, "max_gen_len": 256, "http_retries": 1, "api": "chat", **more}
    return GenerateConfig(file_path="p", output_dir="o", engine="http", base_url=url, served_model="hostile", **values)


def ask(texts, seq_len=1 << 20, key=None, **more):
    """(rows of answers, desk, server) after asking about papers with these texts."""
    server, desk = HostileServer(), LocalDesk(key)

    async def run():
        async with TestServer(server.app()) as served:
            own = config(f"http://127.0.0.1:{served.port}/v1", **more)
            builder = PromptBuilder.of(own, MESSAGES, EstimatedTokenizer(), seq_len)
            papers = [make_paper(0, doi=f"10.0/{n}", txt=text, row=n, keywords=[]) for n, text in enumerate(texts)]
            prompts = [prompt for paper in papers for prompt in builder(paper, "s")]
            actor = EndpointActor(own, seq_len, desk, LocalStop())
            blocks = [block async for block in actor(table(prompts, PROMPT_SCHEMA))]
            await actor.client.close()
            return [row for block in blocks for row in block.to_pylist()]

    return asyncio.run(run()), desk, server


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("redirect", "307: it redirects to http://127.0.0.2:9/v1/chat/completions, which is not followed"),
        ("expired", "401: Incorrect API key Bearer [key] (the key is read from QARAY_API_KEY"),
    ],
)
def test_what_no_request_survives_ends_the_run(name, words):
    rows, desk, _ = ask([f"behave:{name} {make_paper(0)['txt']}"], key="sk-secret")
    assert rows == []
    assert desk.words.startswith(words)
    assert "sk-secret" not in desk.words


def test_an_endpoint_that_mostly_fails_ends_the_run():
    rows, desk, server = ask([f"behave:always_500 {n}" for n in range(40)], http_retries=9, requests_at_once=40)
    assert desk.words == "more than half of its latest responses were failures, the last one 500: an internal error"
    assert rows == []
    assert server.asked["always_500"] < 200


def test_a_paper_that_always_fails_is_rejected_if_the_endpoint_answers():
    """It is the only one, so that no other paper is answered meanwhile: a request of a few tokens tells."""
    (row,), desk, server = ask(["behave:always_503"])
    assert (row["reason"], row["detail"]) == ("engine_error", "the endpoint: 503: overloaded")
    assert server.asked == {"always_503": 2, "well": 1}
    assert desk.words == ""


def test_an_endpoint_that_is_gone_rejects_nothing():
    desk = LocalDesk()

    async def run():
        actor = EndpointActor(config("http://127.0.0.1:9/v1"), 1 << 20, desk, LocalStop())
        builder = PromptBuilder.of(actor.config, MESSAGES, EstimatedTokenizer(), 1 << 20)
        rows = [block async for block in actor(table(builder(make_paper(1, row=0), "s"), PROMPT_SCHEMA))]
        await actor.client.close()
        return rows[0].num_rows

    assert asyncio.run(run()) == 0
    assert desk.words.startswith("it stopped responding (")


@pytest.mark.parametrize("overlength", ["truncate", "split", "skip"])
def test_a_prompt_that_the_endpoint_finds_too_long(overlength):
    text = "behave:too_long " + "The melting point is 300 K. " * 400
    (row,), _, _ = ask([text], overlength=overlength)
    if overlength == "skip":
        assert row["reason"] == "over_length"
        assert "maximum context length is 1500 tokens" in row["detail"]
        return
    assert row["reason"] is None
    assert (row["start"], row["num_qas"]) == (0, 2)
    if overlength == "truncate":
        assert 0 < row["end"] < len(text)
        assert row["truncated_tokens"] > 0
        assert row["prompt_tokens"] == 50
    else:
        assert row["end"] == len(text)
        assert row["truncated_tokens"] == 0
        assert row["prompt_tokens"] >= 100  # of both halves
        assert row["prompt_tokens"] % 50 == 0
        assert row["output"].count("Q1:") == 1


def test_lengths_are_corrected_by_what_the_endpoint_reports():
    """The endpoint counts 50 tokens for each prompt: estimates shrink, and the answer may be longer."""
    texts = [make_paper(n)["txt"] for n in range(30)]
    rows, _, _ = ask(texts, seq_len=2000, requests_at_once=1)
    assert all(row["prompt_tokens"] == 50 for row in rows)


def test_a_parameter_that_the_endpoint_does_not_know_is_left_out():
    rows, _, server = ask([f"behave:no_stop {n}" for n in range(8)])
    assert [row["reason"] for row in rows] == [None] * 8
    assert server.asked["no_stop"] <= 16


def test_the_limit_of_money_is_kept():
    texts = [make_paper(n)["txt"] for n in range(40)]
    rows, desk, _ = ask(texts, input_price=1000.0, output_price=10_000.0, max_cost=10.0, requests_at_once=3)
    each = 50e-3 + 40e-2  # what the endpoint reports of each
    assert 0 < len(rows) < 40
    assert desk.cost == pytest.approx(len(rows) * each)
    assert desk.cost <= 10.0
    assert desk.words.startswith("--max_cost 10 is reached")


def test_part_of_a_prompt():
    own = config("http://x/v1")
    builder = PromptBuilder.of(own, MESSAGES, EstimatedTokenizer(), 1 << 20)
    (prompt,) = builder(make_paper(3, row=0), "s")
    text = prompt["prompt"][prompt["paper_start"] : prompt["paper_end"]]
    part = part_of(prompt, 10, 50, 1)
    assert part["prompt"][part["paper_start"] : part["paper_end"]] == text[10:50]
    assert part["prompt"].replace(text[10:50], text) == prompt["prompt"]
    assert (part["start"], part["end"]) == (10, 50)
    assert part["prompt_tokens"] < prompt["prompt_tokens"]


def test_an_endpoint_that_repeats_the_key_does_not_show_it(monkeypatch):
    """In the refusal of its list of models, which is an error message of the command."""
    monkeypatch.setenv("QARAY_API_KEY", "sk-secret")

    async def refuse(request):
        return web.json_response({"error": {"message": f"bad {request.headers['Authorization']}"}}, status=401)

    async def run():
        app = web.Application()
        app.add_routes([web.get("/v1/models", refuse)])
        async with TestServer(app) as served:
            own = config(f"http://127.0.0.1:{served.port}/v1")
            with pytest.raises(ConfigError, match=r"401: bad Bearer \[key\]: set QARAY_API_KEY") as raised:
                await asyncio.to_thread(reached, own)
            return str(raised.value)

    assert "sk-secret" not in asyncio.run(run())


def test_the_client_is_bounded_and_follows_nothing():
    """Ten megabytes, a compressed body, a drip, a redirect, and who gets the key."""
    server = HostileServer()

    async def post(client, name):
        body = {"messages": [{"role": "user", "content": f"behave:{name}"}]}
        return await client.post("/chat/completions", body)

    async def run():
        async with TestServer(server.app()) as served:
            url = f"http://127.0.0.1:{served.port}/v1"
            client, anonymous = Client(url, "sk-secret", 1.0), Client(url, None, 1.0)
            problems = {}
            for name in ("ten_megabytes", "gzip", "drip", "closed"):
                with pytest.raises(NoResponse) as raised:
                    await post(client, name)
                problems[name] = raised.value
            redirected = await post(client, "redirect")
            keys = set(server.keys)
            server.keys.clear()
            answered = await post(anonymous, "well")
            await client.close()
            await anonymous.close()
            return problems, redirected, keys, answered

    problems, redirected, keys, answered = asyncio.run(run())
    assert "larger than 8 MiB" in str(problems["ten_megabytes"])
    assert "compressed" in str(problems["gzip"])
    assert str(problems["drip"]) == "no response within 1 s"
    assert [problem.late for problem in problems.values()] == [False, False, True, False]
    assert redirected.status == 307
    assert keys == {"Bearer sk-secret"}
    assert server.keys == {""}
    assert json.loads(answered.body)["choices"]
