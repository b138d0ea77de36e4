"""A real `ray job submit` on a real head with a token, and the README's commands."""

import dataclasses
import json
import os
import re
import shlex
import subprocess

from transformers import TrainingArguments

from qaray.cli import COMMANDS
from tests.conftest import ROOT, make_paper, write_jsonl
from tests.ray.conftest import check_complete, qaray

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
        [*line, *map(str, args)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_submitted_job(cluster, tmp_path):
    file, out = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(40)]), tmp_path / "out"
    args = ("--file_path", file, "--output_dir", out, "--engine", "echo", "--num_qas", "3")
    refused = submit(cluster, *args, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert not out.exists()
    done = submit(cluster, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "120 pairs from 40 of 40 papers" in done.stdout + done.stderr
    check_complete(out, {make_paper(i)["doi"] for i in range(40)})
    measured = submit(cluster, "--output_dir", out, "--engine", "echo", job="evaluate")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "120 pairs of 40 papers measured" in measured.stdout + measured.stderr
    failed = submit(cluster, *args, "--num_qas", "4")
    assert failed.returncode != 0
    assert "num_qas: 3 in the run, 4 asked for" in failed.stdout + failed.stderr


def test_commands_of_the_readme(tmp_path, monkeypatch):
    """Those that need no model of the user's are run; of the others the flags are checked."""
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```\n(.*?)```", README, re.S)]
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line]
    trainer = {f"--{field.name}" for field in dataclasses.fields(TrainingArguments)}
    ran = 0
    monkeypatch.chdir(ROOT)
    for words in lines:
        if words[0] != ".venv/bin/qaray":
            continue
        args = [f"{tmp_path}/{w}" if w.startswith("runs/") else w for w in words[1:]]
        if {"--base_model", "--model_name_or_path", "--checkpoint"} & set(args):
            known = qaray(args[0], "--help").stdout
            others = trainer if args[0] == "fine-tune" else set()
            assert all(flag in known or flag in others for flag in args if flag.startswith("--"))
            continue
        done = qaray(*args)
        assert done.returncode == 0, done.stderr
        ran += 1
    assert ran == 7
    assert json.loads((tmp_path / "runs/parsed/processed_output.json").read_text())
    flags = re.findall(r"--[a-z][a-z_0-9]+", README)
    known = "".join(qaray(command, "--help").stdout for command in COMMANDS)
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
    assert processed[make_paper(0)["doi"]]["Q&A"] == [{"Q": "a?", "A": "b."}]
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
