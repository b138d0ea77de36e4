"""The HTTP engine against an endpoint that behaves badly, paper by paper: nothing is lost, and the key is nowhere."""

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.commands import check_complete, free_port, generations, listens, qaray, wait_for
from tests.conftest import ROOT, make_paper, read_jsonl, write_jsonl
from tests.hostile_endpoint import ALWAYS, ONCE

ORDINARY = 60  # papers that are answered first: an endpoint most of whose responses are failures ends the run
REJECTED = {"400": "your text is bad", "403": "blocked by a filter", "always_500": "an internal error"}
REJECTED |= {"always_503": "overloaded"}
NO_PAIRS = {"null_content", "content_filter", "reasoning_only", "refusal"}


@contextlib.contextmanager
def hostile():
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "tests.hostile_endpoint", "--port", str(port)], cwd=ROOT) as server:
        try:
            wait_for(lambda: server.poll() is not None or listens(port))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def paper(name, **more):
    return make_paper(0, doi=f"10.0/{name}", txt=f"behave:{name} {make_paper(0)['txt']}", **more)


def run(tmp_path, url, papers, *more):
    file = write_jsonl(tmp_path / "papers.jsonl", papers)
    flags = ("--num_qas", "2", "--max_attempts", "1", "--max_gen_len", "256", "--http_retries", "2")
    return qaray(
        "generate", "--engine", "http", "--base_url", url, "--file_path", file, "--output_dir", tmp_path / "out",
        *flags, *more,
    )  # fmt: skip


def asked(url):
    with urllib.request.urlopen(url.replace("/v1", "/asked")) as response:
        return json.load(response)


def holds(folder, secret):
    """The files under a folder that hold the secret, and the processes that show it."""
    found = [str(f) for f in Path(folder).rglob("*") if f.is_file() and not f.is_symlink() and secret in _bytes(f)]
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return found + [line for line in lines if secret.decode() in line]


def _bytes(file):
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_every_kind_of_response(tmp_path, monkeypatch):
    """Once: the request is repeated. Always: the paper is rejected with the endpoint's words, or has what was sent."""
    key = f"sk-{secrets.token_hex(16)}"
    monkeypatch.setenv("QARAY_API_KEY", f" {key}\r\n")
    names = [*ONCE, *ALWAYS, "too_long", "no_stop"]
    ordinary = [make_paper(number) for number in range(1, ORDINARY + 1)]
    for each in ordinary:
        each["txt"] *= 3  # the longest are asked first
    papers = [*ordinary, *(paper(name) for name in names if name != "too_long"), paper("too_long", keywords=[])]
    papers[-1]["txt"] *= 60
    with hostile() as url:
        done = run(tmp_path, url, papers, "--request_timeout", "5")
        assert done.returncode == 0, done.stderr
        seen = asked(url)
        assert (tmp_path / "out/manifest.json").exists()
    check_complete(tmp_path / "out", {each["doi"] for each in papers})
    details = {row["doi"].removeprefix("10.0/"): row for row in read_jsonl(tmp_path / "out/rejected.jsonl")}
    for name, words in REJECTED.items():
        assert details[name]["reason"] == "engine_error"
        assert words in details[name]["detail"]
    assert details.keys() == REJECTED.keys() | NO_PAIRS
    assert {details[name]["reason"] for name in NO_PAIRS} == {"no_pairs"}
    assert "reasoning_only" in details["reasoning_only"]["detail"]
    assert seen["asked"] | dict.fromkeys(ONCE, 2) == seen["asked"]
    assert seen["asked"]["always_503"] == 3
    rows = {row["doi"].removeprefix("10.0/"): row for row in generations(tmp_path / "out")}
    assert rows["content_filter"]["finish_reason"] == "content_filter"
    assert [pair["Q"] for pair in rows["reasoning"]["pairs"]] == ["What melts?", "At what pressure?"]
    assert rows["too_long"]["truncated_tokens"] > 1000
    assert rows["reasoning"]["prompt_tokens"] == 50
    assert rows["usage_nonsense"]["prompt_tokens"] != 50
    assert seen["keys"] == [f"Bearer {key}"]
    assert holds(tmp_path, key.encode()) == []
    assert holds(Path(tempfile.gettempdir()) / "ray", key.encode()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words"),
    [("redirect", "it redirects to http://127.0.0.2:9/v1/chat/completions"), ("expired", "401: Incorrect API key")],
)
def test_what_no_request_survives_ends_the_run_and_keeps_the_answers(tmp_path, monkeypatch, name, words):
    key = f"sk-{secrets.token_hex(16)}"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    papers = [*(make_paper(number) for number in range(1, 30)), *(paper(f"{name}") for _ in range(1))]
    with hostile() as url:
        done = run(tmp_path, url, papers, "--requests_at_once", "2")
        assert done.returncode == 1
        assert words in done.stderr.splitlines()[-1]
        assert key not in done.stderr
        before = len(generations(tmp_path / "out"))
        papers[-1]["txt"] = papers[0]["txt"]
    assert before < len(papers)
    assert holds(tmp_path, key.encode()) == []


def test_a_key_that_no_header_takes_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("QARAY_API_KEY", "sk-one\rsk-two")
    done = run(tmp_path, "http://127.0.0.1:9/v1", [make_paper(1)])
    assert done.returncode == 2
    assert "QARAY_API_KEY holds characters that a key cannot have" in done.stderr
    assert "sk-" not in done.stderr
