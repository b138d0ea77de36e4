"""Fine-tunings that cannot work, or that failed before the first step: what is said, and what is left behind."""

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import command
from tests.conftest import ROOT, read_jsonl
from tests.train.conftest import fine_tune, fine_tune_args, write_examples

TOKEN = f"hf_{secrets.token_hex(16)}"  # not in this file, which Ray may have as part of a job
ONE_STEP = ("--max_steps", 1, "--warmup_steps", 0, "--save_steps", 100)


@pytest.mark.long  # DeepSpeed compiles another optimizer, for minutes
@pytest.mark.parametrize("name", ["stage2.json", "stage3_no_offload.json"])  # stage3.json: test_fine_tune.py
def test_a_shipped_deepspeed_file_trains_a_step_as_it_is(tmp_path, tiny_model, name):
    out = tmp_path / "out"
    done = fine_tune(
        tiny_model,
        write_examples(tmp_path / "train.json", 2),
        out,
        "--deepspeed",
        ROOT / "ds_configs" / name,
        *ONE_STEP,
    )
    assert done.returncode == 0, done.stderr
    log = json.loads((out / "training.json").read_text())
    assert (log["step"], log["engine"]["name"]) == (1, "DeepSpeedEngine")
    assert log["engine"]["zero_stage"] == (2 if name == "stage2.json" else 3)
    assert (out / "model" / "config.json").exists()


@pytest.fixture(scope="module")
def corrected(tmp_path_factory, tiny_model):
    """A run whose records are all rejected; the corrected one in the same folder, with a token in the environment."""
    folder = tmp_path_factory.mktemp("corrected")
    data, out = folder / "train.json", folder / "out"
    data.write_text(json.dumps([{"instruction": "x", "input": "y"}, {"instruction": "x", "output": "\u200b\ufeff"}]))
    failed = fine_tune(tiny_model, data, out, *ONE_STEP)
    rejected = read_jsonl(out / "rejected.jsonl")
    write_examples(data, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        done = fine_tune(tiny_model, data, out, *ONE_STEP, "--learning_rate", "1e-4")
    return data, out, failed, rejected, done


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(corrected, tiny_model):
    data, out, failed, rejected, done = corrected
    assert failed.returncode == 2
    assert "no usable example" in failed.stderr
    assert [row["reason"] for row in rejected] == ["missing_key", "empty_text"]
    assert done.returncode == 0, done.stderr
    assert f"nothing was trained in {out} with its earlier settings: starting with these" in done.stderr
    assert (out / "rejected.jsonl").read_text() == ""
    other = fine_tune(tiny_model, data, out, *ONE_STEP, "--learning_rate", "1e-3")
    assert other.returncode == 2
    assert "was started with other settings" in other.stderr


def test_a_token_is_written_nowhere(corrected, tmp_path, tiny_model):
    """Neither in the run directory nor in what Ray logs, given as a flag (refused) or in the environment (used)."""
    import ray

    data, out, _, _, done = corrected
    refused = fine_tune(tiny_model, data, tmp_path / "out", *ONE_STEP, "--hub_token", TOKEN)
    assert refused.returncode == 2
    assert "--hub_token is not supported: nothing is uploaded by a run" in refused.stderr
    assert f"hf upload ORG/NAME {tmp_path}/out/model" in refused.stderr
    assert not (tmp_path / "out").exists()
    session = Path("/tmp/ray") / ray.get_runtime_context().get_session_name()
    assert (session / "logs").is_dir()
    found = subprocess.run(["grep", "-rlaF", TOKEN, out, session], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert TOKEN not in refused.stderr + refused.stdout + done.stderr + done.stdout


def test_a_run_directory_of_another_command_is_not_taken_over(tmp_path, tiny_model):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"format": 2, "model": "x", "hash": "0"}))
    before = (out / "run.json").read_text()
    done = fine_tune(tiny_model, write_examples(tmp_path / "train.json", 2), out, *ONE_STEP)
    assert done.returncode == 2
    assert (out / "run.json").read_text() == before


@pytest.mark.long
def test_precision_is_judged_by_the_workers_device(tmp_path, tiny_model):
    """A logical GPU without CUDA: bfloat16 is refused by a task on it, before a training process starts."""
    args = fine_tune_args(tiny_model, write_examples(tmp_path / "t.json", 2), tmp_path / "out", "--use_gpu", "True")
    program = (
        "import ray, sys; ray.init(address='local', num_cpus=4, num_gpus=1, log_to_driver=False);"
        "from qaray.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    _, environment = command(local=True)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, args)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "bf16" in done.stderr
    assert "PyTorch finds no GPU" in done.stderr
    assert not (tmp_path / "out" / "training.json").exists()
