"""Against the transformers engine, on the bundled model: the same rows, texts and scores; and nothing is lost."""

import json
import os
import signal
from collections import Counter

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.chaos.faults import release
from tests.commands import PATIENCE, check_complete, cluster_processes, generations, qaray, shards, start, wait_for
from tests.conftest import ROOT, make_paper, save_tiny_model, write_jsonl

pytestmark = pytest.mark.long
MODEL = "bundled:smollm2-135m"
FLAGS = ("--base_model", MODEL, "--seq_len", "2048", "--num_qas", "2", "--dtype", "float32", "--max_attempts", "2")


def args_for(tmp_path, engine, number, cache, *more):
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(number)])
    return (
        "generate", "--file_path", file, "--output_dir", tmp_path / engine, "--engine", engine, "--cache_dir", cache,
        *FLAGS, *more,
    )  # fmt: skip


def dois(number):
    return {make_paper(i)["doi"] for i in range(number)}


def outputs(out):
    return {(row["doi"], row["attempt"]): row for row in generations(out)}


def test_greedy_texts_are_those_of_transformers(tmp_path, model_cache):
    for engine in ("auto", "transformers"):
        args = args_for(tmp_path, engine, 6, model_cache, "--temperature", "0", "--max_gen_len", "160")
        done = qaray(*args)
        assert done.returncode == 0, done.stderr
    manifest = check_complete(tmp_path / "auto", dois(6))
    assert manifest["engine"]["name"] == "vllm"
    assert manifest["engine"]["why"].startswith("auto: a worker has vllm")
    assert json.loads((tmp_path / "auto/run.json").read_text())["engine"] == "vllm"
    ours, theirs = outputs(tmp_path / "auto"), outputs(tmp_path / "transformers")
    assert ours.keys() == theirs.keys()
    same = [ours[key]["output"] == theirs[key]["output"] for key in ours]
    assert sum(same) >= 5, [(ours[key]["output"], theirs[key]["output"]) for key in ours]  # near ties may part
    for key, equal in zip(ours, same, strict=True):
        assert ours[key]["prompt_tokens"] == theirs[key]["prompt_tokens"]
        if equal:
            assert ours[key]["finish_reason"] == theirs[key]["finish_reason"]
    assert manifest["ledger"]["workers"] == 1
    assert all(0 < row["prefill_seconds"] <= row["seconds"] for row in ours.values())


def test_attempts_are_rows_seeds_decide_and_what_the_engine_refuses_is_rejected(tmp_path, model_cache):
    """max_model_len below what the run believes: the engine raises for the long paper, and answers the others."""
    papers = [*(make_paper(i) for i in range(3)), make_paper(3, txt=make_paper(3)["txt"] * 12)]
    file, found = write_jsonl(tmp_path / "p.jsonl", papers), []
    for name in ("one", "two"):
        done = qaray(
            "generate", "--file_path", file, "--output_dir", tmp_path / name, "--engine", "vllm", "--cache_dir",
            model_cache, *FLAGS, "--max_gen_len", "64", "--vllm_args", json.dumps({"max_model_len": 1024}),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        check_complete(tmp_path / name, dois(4))
        found.append(outputs(tmp_path / name))
    one, two = found
    assert {key: row["output"] for key, row in one.items()} == {key: row["output"] for key, row in two.items()}
    errors = {doi: row["reason"] for (doi, _), row in one.items() if row["reason"]}
    assert list(errors) == [papers[3]["doi"]]
    assert errors[papers[3]["doi"]] == "engine_error"
    by_doi = Counter(doi for doi, _ in one)
    for doi, attempts in by_doi.items():
        falls_short = doi not in errors and len(one[doi, 1]["pairs"]) < 2
        assert attempts == (2 if falls_short else 1)


def test_a_killed_engine_loses_nothing(tmp_path, model_cache):
    """The engine dies between two shards of papers."""
    args = args_for(tmp_path, "vllm", 12, model_cache, "--max_gen_len", "16", "--max_attempts", "1")
    args += ("--papers_per_shard", "4")
    running = start(*args, faults={"hold": {"prompts": 1}, "folder": tmp_path})
    out = tmp_path / "vllm"
    wait_for(lambda: shards(out / "generations", 1), running)
    victims = [process for process in cluster_processes() if "EngineCore" in named(process)]
    assert victims
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    release(tmp_path, "prompts")
    output, _ = running.communicate(timeout=2 * PATIENCE)
    assert running.returncode == 0, output
    check_complete(out, dois(12))
    assert len(generations(out)) == 12


def named(process):
    """A process's name and command line; nothing for one that has ended."""
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:
        return ""


def test_structured_answers_are_pairs(tmp_path, model_cache):
    done = qaray(
        *args_for(
            tmp_path, "vllm", 2, model_cache, "--structured", "True", "--max_gen_len", "400", "--temperature", "0.3"
        )
    )
    assert done.returncode == 0, done.stderr
    manifest = check_complete(tmp_path / "vllm", dois(2))
    ended = [row for row in generations(tmp_path / "vllm") if row["finish_reason"] == "stop"]
    assert ended
    for row in ended:
        written = json.loads(row["output"])
        assert [sorted(pair) for pair in written] == [["A", "Q"], ["A", "Q"]]
        assert {pair["Q"] for pair in row["pairs"]} == {pair["Q"] for pair in written}
    assert manifest["counts"]["pairs"] >= 2


def test_the_judge_agrees_with_transformers(tmp_path, model_cache):
    sample = ROOT / "qaray/sample/papers.json"
    flags = ("--engine", "echo", "--limit", "1", "--num_qas", "3", "--output_dir", tmp_path / "pairs")
    done = qaray("generate", "--file_path", sample, *flags)
    assert done.returncode == 0, done.stderr
    found = {}
    for engine in ("vllm", "transformers"):
        out = tmp_path / engine
        done = qaray(
            "evaluate", "--processed_output", tmp_path / "pairs/processed_output.json", "--output_dir", out, "--engine",
            engine, "--metrics", "similarity,racar", "--seq_len", "1024", "--dtype", "float32", "--cache_dir",
            model_cache, "--embedding_model", "echo",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[engine] = scores(out / "evaluation")
    assert found["vllm"].shape == found["transformers"].shape
    assert np.abs(found["vllm"] - found["transformers"]).max() < 2e-3


def scores(folder):
    """All grades of the judge, in order."""
    racar = pq.read_table(folder / "racar.parquet").sort_by([("doi", "ascending"), ("qa", "ascending")]).to_pylist()
    grades = [row[name] for row in racar for name in ("relevance", "completeness", "accuracy")]
    similarity = pq.read_table(folder / "similarity.parquet").sort_by("doi").to_pylist()
    pairs = [value for row in similarity for pair in row["pairs"] for value in (pair["judge"], pair["judge_swapped"])]
    assert all(value is not None for value in [*grades, *pairs])
    return np.array([*grades, *pairs])


def test_rope_is_scaled_as_in_transformers(tmp_path):
    """Beyond the 512 tokens of the model: linear RoPE of the same factor, the same greedy tokens."""
    model = save_tiny_model(tmp_path / "model", hidden_size=256)  # heads of 64: vLLM has no kernel for smaller ones
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(i, txt=make_paper(i)["txt"][:120]) for i in range(3)])
    texts = {}
    for engine in ("vllm", "transformers"):
        done = qaray(
            "generate", "--file_path", papers, "--output_dir", tmp_path / engine, "--engine", engine, "--base_model",
            model, "--context_size", str(512 * 8), "--num_qas", "1", "--max_gen_len", "40", "--temperature", "0",
            "--dtype", "float32", "--prompt_template", "llama2", "--max_attempts", "1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # Where a text ends within a character, vLLM leaves it out and transformers shows that it is broken.
        texts[engine] = {key: row["output"].rstrip("\ufffd") for key, row in outputs(tmp_path / engine).items()}
    assert texts["vllm"] == texts["transformers"]
