"""`qaray fine-tune` on real Ray Train and real DeepSpeed: two gloo workers on the CPU."""

import json
import os
import signal
import subprocess
import time

import psutil
import pytest
from safetensors import safe_open

from qaray.finetune.checkpoints import ACCOUNT, last_checkpoint
from qaray.models.contract import Contract
from qaray.run.storage import Location
from tests.conftest import ROOT, read_jsonl
from tests.train.conftest import fine_tune, fine_tune_command, losses, training_log, write_examples

STAGE3 = ROOT / "ds_configs" / "stage3.json"
TWO = ("--num_workers", "2", "--gradient_accumulation_steps", "2", "--learning_rate", "1e-2", "--warmup_steps", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """The original's command with ZeRO-3 and CPU offload, 12 steps, some bad records, examples kept out."""
    folder = tmp_path_factory.mktemp("sft")
    data = write_examples(folder / "train.json", 16)
    rows = json.loads(data.read_text())
    rows += [{"instruction": "x", "input": "y"}, {"instruction": "x", "input": "y" * 9999, "output": "z"}, 7]
    data.write_text(json.dumps(rows))
    kept_out = write_examples(folder / "eval.json", 3)
    out = folder / "out"
    done = fine_tune(
        tiny_model, data, out, "--deepspeed", STAGE3, "--num_train_epochs", "3", "--save_steps", "6",
        "--eval_data_path", kept_out, *TWO,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done


def test_loss_falls_and_the_run_says_what_it_did(finished):
    out, done = finished
    curve = losses(out)
    assert [step for step, _ in curve] == list(range(1, 13))
    assert curve[-1][1] < 0.5 * curve[0][1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["evaluation"]["perplexity_after"] < manifest["evaluation"]["perplexity_before"]
    assert manifest["examples"]["train"]["examples"] == 16
    reasons = {"missing_key": 1, "over_length": 1, "wrong_type": 1}
    assert manifest["examples"]["train"]["by_reject_reason"] == reasons
    assert {r["position"]: r["reason"] for r in read_jsonl(out / "rejected.jsonl")} == {
        16: "missing_key", 17: "over_length", 18: "wrong_type",
    }  # fmt: skip
    assert "the scheduler WarmupDecayLR, the flags for constant_with_warmup: the flags' is used" in done.stderr
    rates = [entry["learning_rate"] for entry in training_log(out) if "loss" in entry]
    assert rates[-1] == pytest.approx(1e-2)  # constant after the warm-up: WarmupDecayLR would have come down to 0
    assert "step 12/12" in done.stderr
    page = (out / "report" / "index.html").read_text()
    assert "Fine-tuning of" in page
    assert "Loss over 12 logged steps" in page


def test_checkpoints_hold_each_shard_once_and_only_the_last_are_kept(finished):
    out, _ = finished
    folders = sorted(path for path in (out / "checkpoints").iterdir() if path.is_dir())
    assert len(folders) == 2  # save_total_limit
    for folder in folders:
        names = [path.name for path in folder.rglob("*") if path.is_file()]
        assert len(names) == len(set(names))
        for rank in (0, 1):
            assert f"rng_state_{rank}.pth" in names
            assert [n for n in names if f"zero_pp_rank_{rank}_" in n and "optim" in n]
            assert [n for n in names if f"zero_pp_rank_{rank}_" in n and "model" in n]
        assert "trainer_state.json" in names


def test_the_run_was_deepspeed_at_stage_3_with_parameters_partitioned(finished):
    out, _ = finished
    engine = json.loads((out / "training.json").read_text())["engine"]
    assert engine["name"] == "DeepSpeedEngine"
    assert engine["zero_stage"] == 3
    assert engine["partitioned"] == engine["parameters"] > 0
    assert engine["optimizer"] == "DeepSpeedCPUAdam"
    assert engine["offloaded"]


def test_the_model_loads_and_carries_its_contract(finished, tiny_model):
    from transformers import AutoModelForCausalLM

    out, _ = finished
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert str(model.dtype) == "torch.bfloat16"
    with safe_open(out / "model" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype.itemsize for name in weights.keys()} == {2}  # noqa: SIM118
    contract = Contract.load(str(out / "model"))
    assert contract is not None
    assert (contract.context_size, contract.rope_factor, contract.template_name) == (768, 2.0, "llama2")
    tokenizer = model.config.vocab_size
    assert tokenizer == 260  # <unk> and [PAD] were missing


def test_generation_keeps_to_the_contract(finished, tmp_path):
    from tests.conftest import make_paper, write_jsonl
    from tests.ray.conftest import qaray

    out, _ = finished
    papers = write_jsonl(tmp_path / "p.jsonl", [make_paper(1)])
    args = ("generate", "--file_path", papers, "--base_model", out / "model", "--output_dir", tmp_path / "g")
    refused = qaray(*args, "--context_size", "1024", local=True)
    assert refused.returncode == 2
    assert "context_size 1024 exceeds the 768 tokens that" in refused.stderr


def test_a_finished_run_does_nothing_again_and_another_is_refused(finished, tiny_model):
    out, _ = finished
    data = out.parent / "train.json"
    again = ("--deepspeed", STAGE3, "--num_train_epochs", "3", "--save_steps", "6")
    more = ("--eval_data_path", out.parent / "eval.json", *TWO)
    done = fine_tune(tiny_model, data, out, *again, *more)
    assert done.returncode == 0, done.stderr
    assert "this run is finished" in done.stderr
    other = fine_tune(tiny_model, data, out, *again, *more, "--learning_rate", "1e-3")
    assert other.returncode == 2
    assert "holds another run (training:" in other.stderr


def test_lost_workers_and_a_lost_driver_do_not_change_the_curve(tmp_path, tiny_model, finished):
    """SIGKILL of a worker: the run goes on by itself. SIGKILL of the driver: the same command goes on.

    The driver's death leaves half of Ray Train's account of checkpoints: its copy counts.
    """
    data, reference = finished[0].parent / "train.json", losses(finished[0])
    out = tmp_path / "out"
    args = (tiny_model, data, out, "--deepspeed", STAGE3, "--num_train_epochs", "3", "--save_steps", "3", *TWO)
    line, environment = fine_tune_command(*args)
    driver = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for_step(out, 3, driver)
        kill_a_worker(driver.pid)
        wait_for_step(out, 8, driver)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    assert not (out / "manifest.json").exists()
    account = out / "checkpoints" / ACCOUNT
    account.write_text(account.read_text()[:100])
    whole = last_checkpoint(Location.of(str(out / "checkpoints")))
    assert json.loads((whole / "trainer_state.json").open().read())["global_step"] in (3, 6)
    done = fine_tune(*args)
    assert done.returncode == 0, done.stderr
    found = losses(out)
    assert [step for step, _ in found] == [step for step, _ in reference]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in reference], rel=2e-3)


def test_killed_during_an_upload_the_last_whole_checkpoint_counts(tmp_path, tiny_model, finished):
    """The second checkpoint's folder is there, but not all ranks have reported it: the run goes on from the first."""
    data, reference = finished[0].parent / "train.json", losses(finished[0])
    out = tmp_path / "out"
    args = (tiny_model, data, out, "--deepspeed", STAGE3, "--num_train_epochs", "3", "--save_steps", "3", *TWO)
    line, environment = fine_tune_command(*args)
    driver = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 300
    while len(begun := list((out / "checkpoints").glob("checkpoint_*/"))) < 2 or checkpointed(out) != 3:
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(begun) == 2
    whole = last_checkpoint(Location.of(str(out / "checkpoints")))
    assert json.loads((whole / "trainer_state.json").open().read())["global_step"] == checkpointed(out) == 3
    other = fine_tune(*args, "--num_workers", "1")
    assert other.returncode == 2
    assert "was written by 2 workers, --num_workers is 1" in other.stderr
    done = fine_tune(*args)
    assert done.returncode == 0, done.stderr
    assert [loss for _, loss in losses(out)] == pytest.approx([loss for _, loss in reference], rel=2e-3)


def wait_for_step(out, step, driver, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert driver.poll() is None, driver.stderr.read()
        if (out / "training.json").exists() and checkpointed(out) >= step - step % 3 and last_step(out) >= step:
            return
        time.sleep(0.2)
    pytest.fail(f"no step {step} in {seconds} s")


def last_step(out):
    try:
        return json.loads((out / "training.json").read_text())["step"]
    except ValueError:
        return 0


def checkpointed(out):
    account = out / "checkpoints" / ACCOUNT
    try:
        return json.loads(account.read_text())["latest_checkpoint_result"]["metrics"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def kill_a_worker(driver):
    for process in psutil.process_iter(["name", "cmdline"]):
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
            process.kill()
            return
    pytest.fail("no training process was found")


def test_low_rank_training_without_deepspeed_is_merged(tmp_path, tiny_model):
    """LongLoRA's way: adapters on the projections, embeddings and norms in full; the export is a plain model."""
    import torch
    from transformers import AutoModelForCausalLM

    data, out = write_examples(tmp_path / "train.json", 8), tmp_path / "out"
    done = fine_tune(
        tiny_model, data, out, "--low_rank_training", "True", "--num_train_epochs", "2", "--save_steps", "100",
        "--learning_rate", "1e-2", "--warmup_steps", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    curve = losses(out)
    assert curve[-1][1] < curve[0][1]
    before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.bfloat16).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name][: len(before[name])])}
    assert {name.split(".")[-2] for name in changed} >= {"q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens"}
    assert not [name for name in changed if "mlp" in name]


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_examples(tmp_path, tiny_model):
    data, out = write_examples(tmp_path / "train.json", 8), tmp_path / "out"
    done = fine_tune(
        tiny_model, data, out, "--num_train_epochs", "9", "--learning_rate", "1e30", "--warmup_steps", "0",
        "--max_grad_norm", "0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "the loss is no finite number at step" in done.stderr
    assert "train.json:" in done.stderr
    assert not (out / "model").exists()


MISTAKES = [
    (("--save_only_model", "True"), "--save_only_model is no flag of the trainer's here"),
    (("--output_dir", "s3://bucket/x"), "only --storage_path"),
    (("--model_max_length", "0"), "model_max_length"),
    (("--deepspeed", "nowhere.json"), "nowhere.json: no such file"),
    (("--deepspeed", "README.md"), "it is no JSON"),
    (("--deepspeed", "BATCH"), "train_micro_batch_size_per_gpu is 4, --per_device_train_batch_size gives 1"),
    (("--no_such_flag", "1"), "no such option: --no_such_flag"),
    (("--learning_rate", "hot"), "learning_rate"),
    (("--data_path", "nowhere.json"), "nowhere.json"),
    (("--model_name_or_path", "./nowhere"), "model ./nowhere: no such folder"),
    (("--prompt_template", "nowhere.txt"), "nowhere.txt"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_are_one_line_before_any_worker_starts(tmp_path, tiny_model, flags, message):
    batch = tmp_path / "batch.json"
    batch.write_text('{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3}}')
    flags = [str(batch) if flag == "BATCH" else flag for flag in flags]
    done = fine_tune(tiny_model, write_examples(tmp_path / "train.json", 2), tmp_path / "out", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "training.json").exists()
    assert "Traceback" not in done.stdout
