"""The HTTP engine against a real server: the shipped endpoint without a model, in a process of its own."""

import contextlib
import json
import subprocess
import sys
import urllib.request

import pytest

from tests.conftest import ROOT, make_paper, write_jsonl
from tests.ray.conftest import check_complete, free_port, generations, listens, qaray, start, wait_for


@contextlib.contextmanager
def endpoint(*options, port=None):
    port = port or free_port()
    line = [sys.executable, "-m", "qaray.engines.echo_server", "--port", str(port), *map(str, options)]
    with subprocess.Popen(line, cwd=ROOT) as server:
        try:
            wait_for(lambda: listens(port))
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


def test_an_endpoint_that_is_never_starved(tmp_path, tiny_model):
    with endpoint("--slots", 8, "--base_model", tiny_model, "--decode_rate", 100) as (url, _):
        done = qaray(*args_for(tmp_path, url, 300, tiny_model, "--requests_at_once", "16"))
        assert done.returncode == 0, done.stderr
        seen = stats(url)
    assert "http: echo at" in done.stderr
    manifest = check_complete(tmp_path / "out", dois(300))
    assert manifest["counts"]["by_status"] == {"complete": 300}
    assert seen["served"] == manifest["counts"]["prompts"] == 300
    assert seen["busy_share"] > 0.2  # one request at a time would be an eighth
    assert manifest["ledger"]["workers"] == 1


def test_the_agent_exports_the_run(cluster, tmp_path, tiny_model):
    """What Prometheus would scrape while a run works, and goes on to be there between two blocks of answers."""

    def exported():
        with urllib.request.urlopen(cluster["METRICS"]) as response:
            lines = response.read().decode().splitlines()
        return {line.split("{")[0]: line for line in lines if 'run="metered"' in line}

    with endpoint("--slots", 4, "--base_model", tiny_model, "--decode_rate", 30) as (url, _):
        args = args_for(tmp_path, url, 100, tiny_model)
        running = start(*(tmp_path / "metered" if arg == tmp_path / "out" else arg for arg in args))
        wait_for(lambda: "ray_qaray_papers_done" in exported())
        found = exported()
        running.kill()
        running.communicate()
    assert found["ray_qaray_papers"].endswith(" 100.0")
    assert 'stage="generate"' in found["ray_qaray_papers_done"]
    assert float(found["ray_qaray_output_tokens"].rsplit(" ", 1)[1]) > 0


def test_an_endpoint_that_goes_away_costs_nothing_but_time(tmp_path, tiny_model):
    port = free_port()
    args = (*args_for(tmp_path, f"http://127.0.0.1:{port}/v1", 200, tiny_model), "--http_retries", "0")
    with endpoint("--slots", 4, "--base_model", tiny_model, port=port) as (_, server):
        running = start(*args)
        wait_for(lambda: list((tmp_path / "out/generations").glob("part*")))
        server.kill()
        output, _ = running.communicate(timeout=200)
    assert running.returncode == 1, output
    assert "has stopped answering" in output.splitlines()[-1], output
    before = len(generations(tmp_path / "out"))
    assert 0 < before < 200
    with endpoint("--slots", 64, "--decode_rate", 1e5, "--base_model", tiny_model, port=port) as (url, _):
        done = qaray(*args)
        assert done.returncode == 0, done.stderr
        assert stats(url)["served"] == 200 - before
    check_complete(tmp_path / "out", dois(200))


def test_what_an_endpoint_refuses_is_rejected_with_its_words(tmp_path, tiny_model):
    with endpoint("--base_model", tiny_model) as (url, _):
        done = qaray(*args_for(tmp_path, url, 5, tiny_model, "--temperature", "3"))
    assert done.returncode == 0, done.stderr
    manifest = check_complete(tmp_path / "out", dois(5))
    assert manifest["counts"]["by_reject_reason"] == {"engine_error": 5}
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert "temperature must be in [0, 2], got 3" in rejected[0]["detail"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "no OpenAI-compatible endpoint there"),
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
