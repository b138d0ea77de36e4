"""The transformers engine in real actor pools, on a random tiny model and on the bundled one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.chaos.faults import held, release
from tests.commands import PATIENCE, check_complete, command, generations, qaray, shards, shell, start, wait_for
from tests.conftest import ROOT, make_paper, write_jsonl

SMALL = (
    "--context_size",
    "4096",
    "--max_gen_len",
    "64",
    "--num_qas",
    "2",
    "--dtype",
    "float32",
    "--threads_per_actor",
    "1",
)


def dois(number):
    return {make_paper(i)["doi"] for i in range(number)}


def args_for(tmp_path, model, number, *more):
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(number)])
    return (
        "generate",
        "--file_path",
        file,
        "--output_dir",
        tmp_path / "out",
        "--base_model",
        model,
        *SMALL,
        *more,
    )


def test_each_paper_is_asked_as_often_as_allowed(tmp_path, tiny_model):
    done = qaray(*args_for(tmp_path, tiny_model, 4, "--max_attempts", "3"))
    assert done.returncode == 0, done.stderr
    assert "attention on SDPA" in done.stderr
    manifest = check_complete(tmp_path / "out", dois(4))
    rows = generations(tmp_path / "out")
    found = {(r["doi"], r["attempt"]) for r in rows if r["status"] == "malformed"}
    for doi in {r["doi"] for r in rows}:
        attempts = sorted(r["attempt"] for r in rows if r["doi"] == doi)
        assert attempts == list(range(1, len(attempts) + 1))
        assert len(attempts) == 3 or (doi, len(attempts)) not in found
    assert all(r["output_tokens"] <= 64 for r in rows)
    assert json.loads((tmp_path / "out/run.json").read_text())["rope_factor"] == 8.0
    assert manifest["counts"]["prompts"] == len(rows)
    assert sum(manifest["counts"]["answers_without_pairs"].values()) == len(found)


SHORT = ("--max_gen_len", "16", "--max_attempts", "1", "--max_batch", "4")  # blocks of one prompt


def workers_of(folder):
    """Processes that hold tickets: see tests/chaos/faults.py."""
    return {ticket.read_text() for ticket in folder.glob("transformers-[0-9]*")}


@pytest.mark.long
def test_few_papers_are_shared_among_the_actors(tmp_path, tiny_model):
    """The first actor that is ready could hold them all: nothing is answered before both have what they hold."""
    args = args_for(tmp_path, tiny_model, 8, *SHORT, "--actors", "2:2")
    running = start(*args, faults={"hold": {"transformers": 0}, "folder": tmp_path})
    wait_for(lambda: held(tmp_path, "transformers") == 8, running)
    release(tmp_path, "transformers")
    output, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, output
    by_worker = Counter(row["worker"] for row in generations(tmp_path / "out"))
    assert sorted(by_worker.values()) == [4, 4]


@pytest.mark.long
def test_a_pool_grows_while_there_is_more_to_do(tmp_path, tiny_model):
    args = args_for(tmp_path, tiny_model, 40, *SHORT, "--actors", "1:2")
    running = start(*args, faults={"hold": {"transformers": 4}, "folder": tmp_path})
    wait_for(lambda: len(workers_of(tmp_path)) == 2, running)
    release(tmp_path, "transformers")
    output, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, output
    check_complete(tmp_path / "out", dois(40))


@pytest.mark.long
def test_a_killed_actor_loses_nothing(tmp_path, tiny_model):
    args = args_for(tmp_path, tiny_model, 12, *SHORT)
    running = start(*args, faults={"hold": {"transformers": 3}, "folder": tmp_path})
    out = tmp_path / "out"
    wait_for(lambda: shards(out / "generations", 1) and held(tmp_path, "transformers") > 3, running)
    (actor,) = workers_of(tmp_path)
    os.kill(int(actor), signal.SIGKILL)
    release(tmp_path, "transformers")
    output, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, output
    check_complete(out, dois(12))
    assert len(generations(out)) == 12
    assert len(workers_of(tmp_path)) == 2


@pytest.mark.long
def test_logical_gpus_carry_the_pool(tmp_path, tiny_model):
    """Two actors on a GPU each, where Ray believes in GPUs that are not there: placement is real, the work on CPUs."""
    script = (
        "import ray, sys; ray.init(address='local', num_cpus=4, num_gpus=2, log_to_driver=False);"
        "from qaray.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    line, environment = command(
        *args_for(tmp_path, tiny_model, 4, "--actors", "2:2", "--max_attempts", "1"), local=True
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *line[3:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 actors on 1 GPU each" in done.stderr
    check_complete(tmp_path / "out", dois(4))


def test_a_model_without_safetensors_is_refused(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    done = qaray(*args_for(tmp_path, folder, 2))
    assert done.returncode != 0
    assert "safetensors" in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_demo(tmp_path, model_cache):
    """What a newcomer sees: real pairs of the bundled model for the sample papers, in a report."""
    out = tmp_path / "demo"
    done = shell("demo", "--output_dir", out, "--cache_dir", model_cache, local=True)
    assert done.returncode == 0, done.stderr
    assert f"{out}/report/index.html" in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["papers"] == 8
    assert counts["papers_with_pairs"] >= 4  # which ones, a model of this size leaves to the last bit of a sum
    assert counts["pairs"] >= 8
    assert "Haber–Bosch" in (out / "report/index.html").read_text()
    first = json.loads((out / "processed_output.json").read_text())[0]
    pair, samples = first["Q&A"][0], json.loads((ROOT / "qaray/sample/papers.json").read_text())
    number = 1 + [paper["doi"] for paper in samples].index(first["doi"])
    page = (out / f"report/papers/{number:06d}.html").read_text()
    assert json.loads((out / "evaluation/manifest.json").read_text())["counts"]["papers"] == counts["papers_with_pairs"]
    assert pair["Q"][:20].replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;") in page
