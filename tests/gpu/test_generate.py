"""On a CUDA device: whole commands through actors that Ray places on it."""

import json

import pytest
import torch

from tests.commands import check_complete, generations, shell
from tests.conftest import make_paper, write_jsonl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
FLAGS = ("--context_size", "2048", "--seq_len", "2048", "--num_qas", "2", "--prompt_template", "llama2")


def args_for(tmp_path, name, model, number, *more):
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(number)])
    return (
        "generate", "--engine", "transformers", "--file_path", file, "--output_dir", tmp_path / name, "--base_model",
        model, *FLAGS, "--max_attempts", "1", *more,
    )  # fmt: skip


def test_a_run_on_the_device_accounts_for_it(tmp_path, tiny_model):
    done = shell(*args_for(tmp_path, "out", tiny_model, 40, "--max_gen_len", "64", "--gpu_hour_price", "2"), local=True)
    assert done.returncode == 0, done.stderr
    manifest = check_complete(tmp_path / "out", {make_paper(i)["doi"] for i in range(40)})
    assert manifest["engine"]["device"] == torch.cuda.get_device_name(0)
    ledger = manifest["ledger"]
    assert (ledger["workers"], ledger["devices_per_worker"]) == (1, 1)
    assert ledger["device_seconds"] > 0
    assert ledger["cost"] > 0
    assert len(generations(tmp_path / "out")) == 40


def test_two_actors_share_a_device(tmp_path, tiny_model):
    """Half a GPU each, in float32: the greedy texts of the whole device."""
    texts = {}
    for name, more in (("one", ()), ("two", ("--gpus_per_actor", "0.5", "--actors", "2"))):
        flags = ("--max_gen_len", "40", "--temperature", "0", "--dtype", "float32", *more)
        done = shell(*args_for(tmp_path, name, tiny_model, 24, *flags), local=True)
        assert done.returncode == 0, done.stderr
        texts[name] = {row["doi"]: row["output"] for row in generations(tmp_path / name)}
    assert texts["one"] == texts["two"]


def test_evaluation_runs_on_the_device(tmp_path, tiny_model):
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(3)])
    flags = ("--engine", "echo", "--output_dir", tmp_path / "out")
    pairs = shell("generate", "--file_path", papers, *flags, local=True)
    assert pairs.returncode == 0, pairs.stderr
    done = shell(
        "evaluate", "--processed_output", tmp_path / "out/processed_output.json", "--output_dir", tmp_path / "out",
        "--metrics", "similarity,racar", "--engine", "transformers", "--judge_model", tiny_model, "--context_size",
        "4096", "--seq_len", "4096", "--embedding_model", "echo", local=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/evaluation/summary.json").read_text())
    assert summary
