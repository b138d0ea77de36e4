"""A command has no flag without effect: one of the engines that it may run reads it."""

import contextlib
import json
import os
from types import SimpleNamespace

import pytest

from qaray.config import (
    EvaluateConfig,
    GenerateConfig,
    MakeSftConfig,
    ParseConfig,
    PlanConfig,
    ReportConfig,
    StatusConfig,
    SubmitConfig,
)
from qaray.engines.vllm import VLLMEngine
from qaray.engines.worker import WorkerInfo
from qaray.models.planner import plan_model
from qaray.observe import submit
from qaray.run import cluster
from tests.commands import qaray
from tests.conftest import ROOT, make_paper, with_pairs, write_jsonl
from tests.ray.test_http import endpoint
from tests.recording import reads, recorded_reads


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "reads"
    folder.mkdir()
    return folder


def unread(config_type, notes):
    return set(config_type.flags()) - reads(notes)


def as_vllm_asks(config):
    """What the vLLM engine reads to start, on a worker with a GPU and on one without."""
    for gpus in (1.0, 0.0):
        engine = VLLMEngine(config, plan_model(config), WorkerInfo(gpus=gpus, dtype="float32"), lambda: False, None)
        engine._engine_kwargs(), engine._environment(), engine._bundle()


def as_drivers_connect(config, monkeypatch):
    """What a driver reads that is not connected yet: the session's is."""
    with monkeypatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("ray.is_initialized", lambda: False)
        patch.setattr(cluster, "_init", lambda options, cluster: None)
        patch.setattr(cluster, "watch_cluster", lambda: None)
        cluster.connect(config.cluster)


def test_generate(tmp_path, notes, tiny_model, monkeypatch):
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(0)])
    line = ["generate", "--file_path", papers, "--num_qas", "1", "--context_size", "4096", "--max_gen_len", "16"]
    with recorded_reads(notes), endpoint("--base_model", tiny_model) as (url, _):
        for number, engine in enumerate(
            [
                ["--engine", "echo"],
                ["--engine", "transformers", "--base_model", tiny_model],
                ["--engine", "http", "--base_model", tiny_model, "--base_url", url],
            ]
        ):
            done = qaray(*line, *engine, "--output_dir", tmp_path / str(number))
            assert done.returncode == 0, done.stderr
        config = GenerateConfig(file_path="-", output_dir="-", base_model=tiny_model, engine="vllm")
        as_vllm_asks(config)
        as_drivers_connect(config, monkeypatch)
    assert unread(GenerateConfig, notes) == set()


def test_evaluate(tmp_path, notes, tiny_model, monkeypatch):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [with_pairs(0)])
    line = ["evaluate", "--processed_output", pairs, "--output_dir", tmp_path / "out", "--embedding_model", "echo"]
    with recorded_reads(notes):
        done = qaray(*line, "--engine", "transformers", "--judge_model", tiny_model, "--context_size", "4096")
        assert done.returncode == 0, done.stderr
        assert qaray("evaluate", "--compare", tmp_path / "out", tmp_path / "out").returncode == 0
        config = EvaluateConfig(output_dir="-", judge_model=tiny_model, engine="vllm")
        as_vllm_asks(config)
        as_drivers_connect(config, monkeypatch)
    assert unread(EvaluateConfig, notes) == set()


def test_commands_without_a_model(tmp_path, notes):
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(2)])
    out, run = tmp_path / "out", ["--output_dir", tmp_path / "out"]
    assert qaray("generate", "--file_path", papers, "--engine", "echo", *run).returncode == 0
    original, processed = out / "original_output.json", out / "processed_output.json"
    parsed = ["--original_output", original, "--file_path", papers, "--output_dir", tmp_path / "parsed"]
    lines = {
        ParseConfig: ["parse", *parsed],
        ReportConfig: ["report", *run],
        MakeSftConfig: ["make-sft", "--processed_output", processed, "--output", tmp_path / "sft.json"],
        PlanConfig: ["plan", *run, "--papers", "1000"],
        StatusConfig: ["status", out],
    }
    for config_type, line in lines.items():
        own = notes / config_type.__name__
        own.mkdir()
        with recorded_reads(own):
            assert qaray(*line).returncode == 0, line
        assert unread(config_type, own) == set()


def test_submit(notes, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back after the test
    submitted = []
    client = SimpleNamespace(submit_job=lambda **job: submitted.append(job))
    with recorded_reads(notes):
        config = SubmitConfig(command="generate", working_dir=str(ROOT), wait=False, token_file=str(ROOT / "LICENSE"))
        with contextlib.suppress(submit.ConfigError):
            submit.connect(config.replace(address="http://127.0.0.1:1"))
        monkeypatch.setattr(submit, "connect", lambda _: client)
        assert submit.submit(config) == 0
    assert json.dumps(submitted[0]["entrypoint"]) == '"python jobs/generate.py"'
    assert unread(SubmitConfig, notes) == set()
