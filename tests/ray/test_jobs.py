"""A real `ray job submit` on a real head with a token, and the README's commands."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from transformers import TrainingArguments

from qaray.cli import CONFIGS
from qaray.schema import pair_id
from tests.commands import PATIENCE, check_complete, free_port, listens, qaray, shards, shell, start, wait_for
from tests.conftest import ROOT, make_paper, write_jsonl
from tests.train.conftest import write_examples

README = (ROOT / "README.md").read_text()


def submit(cluster, *args, job="generate", **env):
    line = [
        "ray",
        "job",
        "submit",
        "--address",
        cluster["JOBS"],
        "--working-dir",
        str(ROOT),
        "--",
        "python",
        f"jobs/{job}.py",
    ]
    environment = {**os.environ, **cluster, **env}
    environment.pop("RAY_ADDRESS")
    return subprocess.run(
        [*line, *map(str, args)], env=environment, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )


@pytest.mark.long
def test_a_submitted_job(cluster, tmp_path):
    file, out = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(3)]), tmp_path / "out"
    args = ("--file_path", file, "--output_dir", out, "--engine", "echo", "--num_qas", "3")
    for token in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}):
        refused = submit(cluster, *args, **token)
        assert refused.returncode != 0
        assert "401" in refused.stdout + refused.stderr or "oken" in refused.stdout + refused.stderr
        assert not out.exists()
    done = submit(cluster, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 pairs from 3 of 3 papers" in done.stdout + done.stderr
    check_complete(out, {make_paper(i)["doi"] for i in range(3)})
    measured = submit(cluster, "--output_dir", out, "--engine", "echo", job="evaluate")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "9 pairs of 3 papers evaluated" in measured.stdout + measured.stderr
    failed = submit(cluster, *args, "--num_qas", "4")
    assert failed.returncode != 0
    assert "num_qas: 3 in the run, 4 asked for" in failed.stdout + failed.stderr


@pytest.mark.long
def test_the_whole_pipeline_as_a_job(cluster, tmp_path):
    file, out = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(3)]), tmp_path / "out"
    done = submit(
        cluster, "--file_path", file, "--output_dir", out, "--engine", "echo", "--num_qas", "3", job="pipeline"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 pairs of 3 papers evaluated" in done.stdout + done.stderr
    check_complete(out, {make_paper(i)["doi"] for i in range(3)})
    assert (out / "evaluation" / "summary.json").exists()
    assert (out / "report" / "index.html").exists()


@pytest.mark.long
def test_a_fine_tuning_as_a_job(cluster, tmp_path, tiny_model):
    data, out = write_examples(tmp_path / "train.json", 4), tmp_path / "out"
    args = ("--model_name_or_path", tiny_model, "--data_path", data, "--output_dir", out, "--model_max_length", "768")
    done = submit(cluster, *args, "--num_workers", "2", "--num_train_epochs", "1", job="fine_tune")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "model" / "model.safetensors").exists()


@pytest.fixture
def front(cluster, tmp_path):
    """Flags of `qaray submit`, with the token in a file."""
    (tmp_path / "token").write_text(cluster["RAY_AUTH_TOKEN"])
    return ("--address", cluster["JOBS"], "--working_dir", ROOT, "--token_file", tmp_path / "token")


def test_submit_follows_a_job(front, tmp_path):
    """The comfortable way: a token from a file, the log, a mistake told once, a refused token."""
    file, out = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(3)]), tmp_path / "out"
    args = ("--file_path", file, "--output_dir", out, "--engine", "echo", "--num_qas", "3")
    name = f"one-{os.getpid()}"
    done = shell("submit", "generate", *front, "--submission_id", name, *args, local=True)
    assert done.returncode == 0, done.stderr
    assert "9 pairs from 3 of 3 papers" in done.stdout
    assert f"submitted {name}" in done.stderr
    mistake = shell("submit", "generate", *front, *args, "--num_qas", "4", local=True)
    assert mistake.returncode == 2
    assert "num_qas: 3 in the run, 4 asked for" in mistake.stdout
    assert mistake.stderr.count("submitted") == 1
    (tmp_path / "token").write_text("0" * 64)
    refused = shell("submit", "generate", *front, *args, local=True)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert qaray("submit", "parse", "--working_dir", ROOT).returncode == 2
    assert qaray("submit", "run", "--working_dir", tmp_path).returncode == 2


@pytest.mark.long
def test_submit_tries_again_by_another_name(front, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"doi": "x"}])  # no paper at all: fails, and might not the next time
    args = ("--file_path", bad, "--output_dir", tmp_path / "bad", "--engine", "echo")
    name = f"two-{os.getpid()}"
    failed = shell("submit", "generate", *front, "--resubmit", "1", "--submission_id", name, *args, local=True)
    assert failed.returncode == 1
    assert failed.stderr.count("submitted") == 2
    assert f"submitted {name}-2" in failed.stderr
    assert "generate failed 2 times" in failed.stderr


@pytest.mark.long
def test_a_stopped_job_ends_in_order(front, cluster, tmp_path):
    """`ray job stop` gives a run the time to finish what is in hand: RAY_JOB_STOP_WAIT_TIME_S."""
    out = tmp_path / "out"
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i, txt=make_paper(i)["txt"] * 9) for i in range(3000)])
    args = ("--file_path", file, "--output_dir", out, "--engine", "echo", "--papers_per_shard", "50")
    name = f"stopped-{os.getpid()}"
    following = start("submit", "generate", *front, "--submission_id", name, *args, local=True)
    wait_for(lambda: shards(out / "papers", 1), following)
    environment = {**os.environ, "RAY_AUTH_TOKEN": cluster["RAY_AUTH_TOKEN"], "RAY_AUTH_MODE": "token"}
    line = ["ray", "job", "stop", "--address", cluster["JOBS"], name]
    assert subprocess.run(line, env=environment, capture_output=True, timeout=PATIENCE, check=False).returncode == 0
    output, _ = following.communicate(timeout=PATIENCE)
    assert following.returncode != 0
    assert "rerun the command to resume" in output
    assert not (out / "lease.json").exists()


def test_status_of_runs(tmp_path):
    """Begun, cut short, finished, evaluated: from the files alone."""
    file, out = write_jsonl(tmp_path / "p.jsonl", [*[make_paper(i) for i in range(3)], {"doi": 1}]), tmp_path / "out"
    none = qaray("status", out)
    assert none.returncode == 2
    assert "is not a run directory" in none.stderr
    assert qaray("run", "--file_path", file, "--output_dir", out, "--engine", "echo", "--num_qas", "3").returncode == 0
    lines = qaray("status", out).stdout.splitlines()
    assert lines[0] == "generate: finished, 3 of 3 papers, 1 rejected"
    assert lines[1].startswith("evaluate: finished, 3 of 3 papers, coverage 3, questions 3")
    (out / "manifest.json").unlink()
    cut = json.loads(qaray("status", "--output_dir", out, "--json_lines", "True").stdout)
    assert (cut["generate"]["state"], cut["generate"]["done"]) == ("interrupted", 3)


def test_commands_of_the_readme(tmp_path, monkeypatch):
    """Those that need no model of the user's are run; of the others the flags are checked."""
    blocks = [
        block.replace("\\\n", " ")
        for block in re.findall(r"```\n(.*?)```", re.sub(r"```json.*?```", "", README, flags=re.S), re.S)
    ]
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line]
    trainer = {f"--{field.name}" for field in dataclasses.fields(TrainingArguments)}
    ran = 0
    monkeypatch.chdir(ROOT)
    port = str(free_port())
    with contextlib.ExitStack() as stack:
        for words in lines:
            words = [word.replace("8001", port) for word in words]
            if words[1:3] == ["-m", "qaray.engines.echo_server"]:
                server = [sys.executable, *words[1:-1]]  # without the ampersand
                process = stack.enter_context(subprocess.Popen(server, cwd=ROOT))
                stack.callback(process.kill)
                wait_for(lambda: listens(int(port)))
            if words[0] != ".venv/bin/qaray":
                continue
            args = [f"{tmp_path}/{w}" if w.startswith("runs/") else w for w in words[1:]]
            if words[1] == "submit":  # of a cluster that is not here: its own flags and the command's
                known = qaray("submit", "--help").stdout + qaray(words[2], "--help").stdout
                assert all(flag in known for flag in args if flag.startswith("--"))
                continue
            if {"--base_model", "--model_name_or_path", "--checkpoint"} & set(args):
                known = qaray(args[0], "--help").stdout
                others = trainer if args[0] == "fine-tune" else set()
                assert all(flag in known or flag in others for flag in args if flag.startswith("--"))
                continue
            done = qaray(*args)
            assert done.returncode == 0, done.stderr
            ran += 1
    assert ran == 10
    assert json.loads((tmp_path / "runs/parsed/processed_output.json").read_text())
    flags = re.findall(r"--[a-z][a-z_0-9]+", README)
    known = "".join(qaray(command, "--help").stdout for command in CONFIGS)
    assert {f for f in flags if f not in known and f not in trainer} <= {"--working", "--port"}


def test_parse_needs_no_cluster(tmp_path):
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(4)])
    outputs = [
        {"doi": make_paper(0)["doi"], "output": "Q1: a?\nA1: b."},
        {"doi": make_paper(1)["doi"], "output": "nothing", "input": "x"},
        {"doi": make_paper(2)["doi"], "output": "1. c?\nA: d.", "window": 1},
        {"doi": make_paper(2)["doi"], "output": "1. e?\nA: f.", "window": 0},
        {"doi": make_paper(0)["doi"], "output": "Q1: again?\nA1: b."},
        {"doi": "unknown", "output": "Q1: a?\nA1: b."},
        {"output": "x"},
        {"doi": "y", "output": 3},
    ]
    write_jsonl(tmp_path / "o.jsonl", outputs)
    out = tmp_path / "out"
    done = qaray("parse", "--original_output", tmp_path / "o.jsonl", "--file_path", papers, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    processed = {r["doi"]: r for r in json.loads((out / "processed_output.json").read_text())}
    assert processed[make_paper(0)["doi"]]["Q&A"] == [
        {"Q": "a?", "A": "b.", "pair_id": pair_id(make_paper(0)["doi"], 1, window=0)}
    ]
    assert [p["Q"] for p in processed[make_paper(2)["doi"]]["Q&A"]] == ["e?", "c?"]
    rejected = [(r["doi"], r["reason"]) for r in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())]
    assert sorted(rejected, key=str) == sorted(
        [
            (make_paper(0)["doi"], "duplicate_doi"),
            (None, "missing_key"),
            ("y", "wrong_type"),
            (make_paper(1)["doi"], "no_pairs"),
            (make_paper(3)["doi"], "no_output"),
            ("unknown", "no_paper"),
        ],
        key=str,
    )
    assert "2" in done.stdout
