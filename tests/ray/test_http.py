"""The HTTP engine against a real server: the shipped endpoint without a model, in a process of its own."""

import contextlib
import json
import subprocess
import sys
import urllib.request

import pytest

from tests.commands import PATIENCE, check_complete, free_port, generations, kill, listens, qaray, start, wait_for
from tests.conftest import ROOT, make_paper, write_jsonl


@contextlib.contextmanager
def endpoint(*options, port=None, held=False):
    """A server in a process of its own; ``held``: that of tests/endpoint.py."""
    port = port or free_port()
    module = "tests.endpoint" if held else "qaray.engines.echo_server"
    line = [sys.executable, "-m", module, "--port", str(port), *map(str, options)]
    with subprocess.Popen(line, cwd=ROOT) as server:
        try:
            wait_for(lambda: server.poll() is not None or listens(port))
            yield f"http://127.0.0.1:{port}/v1", server
        finally:
            server.kill()


def stats(url):
    with urllib.request.urlopen(url.replace("/v1", "/stats")) as response:
        return json.load(response)


def args_for(tmp_path, url, number, model, *more):
    file = write_jsonl(
        tmp_path / "p.jsonl", [make_paper(i, txt=make_paper(i)["txt"] * (1 + i % 7)) for i in range(number)]
    )
    flags = ("--context_size", "8192", "--seq_len", "8192", "--num_qas", "2", "--max_gen_len", "256")
    return (
        "generate", "--engine", "http", "--base_url", url, "--base_model", model, "--prompt_template", "llama2",
        "--file_path", file, "--output_dir", tmp_path / "out", *flags, *more,
    )  # fmt: skip


def dois(number):
    return {make_paper(i)["doi"] for i in range(number)}


def test_requests_are_in_flight_together(tmp_path, tiny_model):
    """The endpoint answers none of the first sixteen before all of them are there."""
    with endpoint("--gather", 16, "--base_model", tiny_model, held=True) as (url, _):
        done = qaray(*args_for(tmp_path, url, 40, tiny_model, "--requests_at_once", "16"))
        assert done.returncode == 0, done.stderr
        seen = stats(url)
    assert "http: echo at" in done.stderr
    assert ", chat, " in done.stderr
    manifest = check_complete(tmp_path / "out", dois(40))
    assert manifest["counts"]["by_status"] == {"complete": 40}
    assert seen["served"] == manifest["counts"]["prompts"] == 40
    assert manifest["ledger"]["workers"] == 1


@pytest.mark.long
def test_the_agent_exports_the_run(cluster, tmp_path, tiny_model):
    """What Prometheus would scrape while a run waits for its next answers."""

    def exported():
        with urllib.request.urlopen(cluster["METRICS"]) as response:
            lines = response.read().decode().splitlines()
        return {line.split("{")[0]: line for line in lines if 'run="metered"' in line}

    def number(name):
        return float(exported().get(name, "- 0").rsplit(" ", 1)[1])

    with endpoint("--answer", 20, "--base_model", tiny_model, held=True) as (url, _):
        args = args_for(tmp_path, url, 60, tiny_model)
        running = start(*(tmp_path / "metered" if arg == tmp_path / "out" else arg for arg in args))
        wait_for(lambda: number("ray_qaray_papers_done") > 0 and number("ray_qaray_output_tokens") > 0, running)
        found = exported()
        kill(running)
    assert found["ray_qaray_papers"].endswith(" 60.0")
    assert 'stage="generate"' in found["ray_qaray_papers_done"]


@pytest.mark.long
def test_an_endpoint_that_goes_away_costs_nothing_but_time(tmp_path, tiny_model):
    port = free_port()
    args = (*args_for(tmp_path, f"http://127.0.0.1:{port}/v1", 48, tiny_model), "--http_retries", "0")
    args += ("--requests_at_once", "16")
    with endpoint("--answer", 20, "--base_model", tiny_model, port=port, held=True) as (_, server):
        running = start(*args)
        wait_for(lambda: list((tmp_path / "out/generations").glob("part*")), running)
        server.kill()
        output, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1, output
    assert "connection attempts failed" in output.splitlines()[-1], output
    assert "completed work is saved" in output.splitlines()[-1]
    before = len(generations(tmp_path / "out"))
    assert 0 < before <= 20
    with endpoint("--slots", 64, "--decode_rate", 1e5, "--base_model", tiny_model, port=port) as (url, _):
        done = qaray(*args)
        assert done.returncode == 0, done.stderr
        assert stats(url)["served"] == 48 - before
    check_complete(tmp_path / "out", dois(48))


@pytest.mark.long
def test_token_ids_are_sent_where_they_are_asked_for(tmp_path, tiny_model):
    """A tokenizer, a template, and an answer to what the ids say."""
    with endpoint("--base_model", tiny_model) as (url, _):
        done = qaray(*args_for(tmp_path, url, 3, tiny_model, "--api", "completions"))
    assert done.returncode == 0, done.stderr
    assert check_complete(tmp_path / "out", dois(3))["run"]["template"] == "llama2"
    rows = generations(tmp_path / "out")
    assert all("the echo" not in row["pairs"][0]["Q"] for row in rows)  # which is asked about an empty prompt
    assert all(row["prompt_tokens"] > 500 for row in rows)


def test_an_endpoint_needs_no_tokenizer(tmp_path):
    with endpoint() as (url, _):
        file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(3)])
        done = qaray(
            "generate", "--engine", "http", "--base_url", url, "--file_path", file, "--output_dir", tmp_path / "out",
            "--num_qas", "2",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = check_complete(tmp_path / "out", dois(3))
    assert manifest["run"]["served_model"] == "echo"
    assert manifest["counts"]["by_status"] == {"complete": 3}


@pytest.mark.long
def test_a_run_ends_before_it_costs_more(tmp_path):
    """And goes on with a higher limit: the answers of both starts together cost what the manifest says."""

    def generate(most):
        return qaray(
            "generate", "--engine", "http", "--base_url", url, "--file_path", file, "--output_dir", tmp_path / "out",
            "--num_qas", "2", "--max_attempts", "1", "--max_gen_len", "100", "--requests_at_once", "4",
            "--input_price", "1000", "--output_price", "10000", "--max_cost", most,
        )  # fmt: skip

    with endpoint() as (url, _):
        file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(30)])
        done = generate("10")
        assert done.returncode == 1
        assert "--max_cost 10 is reached" in done.stderr.splitlines()[-1]
        rows = generations(tmp_path / "out")
        spent = sum(row["prompt_tokens"] * 1e-3 + row["output_tokens"] * 1e-2 for row in rows)
        assert 5 < spent <= 10
        assert 0 < len(rows) < 30
        done = generate("1000")
        assert done.returncode == 0, done.stderr
        assert stats(url)["served"] == 30
    manifest = check_complete(tmp_path / "out", dois(30))
    rows = generations(tmp_path / "out")
    spent = sum(row["prompt_tokens"] * 1e-3 + row["output_tokens"] * 1e-2 for row in rows)
    assert manifest["ledger"]["cost"] == pytest.approx(spent)
    assert f"cost {spent:,.2f}" in done.stderr
    planned = qaray("plan", "--output_dir", tmp_path / "out", "--papers", "300")
    assert f"cost {10 * spent:,.2f}" in planned.stdout


def test_what_an_endpoint_refuses_is_rejected_with_its_words(tmp_path, tiny_model):
    with endpoint("--base_model", tiny_model) as (url, _):
        done = qaray(*args_for(tmp_path, url, 2, tiny_model, "--temperature", "3"))
    assert done.returncode == 0, done.stderr
    manifest = check_complete(tmp_path / "out", dois(2))
    assert manifest["counts"]["by_reject_reason"] == {"engine_error": 2}
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert "temperature must be in [0, 2], got 3" in rejected[0]["detail"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "not an OpenAI-compatible endpoint"),
        (("--served_model", "other"), "serves echo"),
    ],
)
def test_a_wrong_endpoint_is_one_line(tmp_path, tiny_model, more, message):
    with contextlib.ExitStack() as stack:
        url = f"http://127.0.0.1:{free_port()}/v1"
        if more:
            url, _ = stack.enter_context(endpoint())
        done = qaray(*args_for(tmp_path, url, 2, tiny_model, *more))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
