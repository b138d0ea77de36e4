"""Trainings that lose their workers or their driver end with the curve of an undisturbed one."""

import json
import os
import signal

import pytest

from qaray.finetune.checkpoints import last_checkpoint
from qaray.run.storage import Location
from tests.chaos.faults import held
from tests.commands import kill, start, wait_for
from tests.conftest import ROOT
from tests.train.conftest import fine_tune, fine_tune_args, losses, write_examples

pytestmark = pytest.mark.long
STAGE3 = ("--deepspeed", ROOT / "ds_configs" / "stage3.json", "--num_workers", "2")
FLAGS = (
    "--gradient_accumulation_steps", "2", "--learning_rate", "1e-2", "--warmup_steps", "2", "--num_train_epochs", "3",
    "--save_steps", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("data") / "train.json", 16)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_model, data):
    """The curve of the original's command, in bfloat16 where the CPU has it."""
    out = tmp_path_factory.mktemp("reference") / "out"
    done = fine_tune(tiny_model, data, out, *STAGE3, *FLAGS)
    assert done.returncode == 0, done.stderr
    return losses(out)


def held_at(step, folder, out, *args):
    """A command whose training waits at a step, once the checkpoint before it is in Ray Train's account."""
    folder.mkdir()
    running = start(*args, faults={"hold": {"train": step}, "folder": folder})
    wait_for(lambda: held(folder, "train") and (out / "checkpoints.latest.json").exists(), running)
    return running


def step_of(place):
    return json.loads((place / "trainer_state.json").open().read())["global_step"]


def test_lost_workers_and_a_lost_driver_do_not_change_the_curve(tmp_path, tiny_model, data, reference):
    """SIGKILL of a worker: the run goes on by itself. Of the driver, with a torn account: the same command does."""
    out = tmp_path / "out"
    args = fine_tune_args(tiny_model, data, out, *STAGE3, *FLAGS)
    running = held_at(5, tmp_path / "faults", out, *args)
    worker = int((tmp_path / "faults" / "train-0").read_text())
    (tmp_path / "faults" / "train-0").unlink()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: held(tmp_path / "faults", "train"), running)  # it is at step 5 again
    kill(running)
    assert not (out / "manifest.json").exists()
    assert step_of(last_checkpoint(Location.of(str(out / "checkpoints")))) == 3
    account = out / "checkpoints" / "checkpoint_manager_snapshot.json"
    account.write_text(account.read_text()[:100])  # as a kill in the middle of writing it leaves it
    done = fine_tune(tiny_model, data, out, *STAGE3, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert f"training resumes from {out}/checkpoints.set-aside-1/" in done.stderr
    found = losses(out)
    assert [step for step, _ in found] == [step for step, _ in reference]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in reference], rel=2e-3)


def test_another_number_of_workers_is_refused(tmp_path, tiny_model, data):
    out = tmp_path / "out"
    running = held_at(5, tmp_path / "faults", out, *fine_tune_args(tiny_model, data, out, *STAGE3, *FLAGS))
    kill(running)
    other = fine_tune(tiny_model, data, out, *STAGE3, *FLAGS, "--num_workers", "1")
    assert other.returncode == 2
    assert "was written by 2 workers but --num_workers is 1" in other.stderr


def test_a_training_without_deepspeed_goes_on_from_its_weights(tmp_path, tiny_model, data):
    """Low rank: a checkpoint holds what is trained, and a resumed run begins with that, not with the base model."""
    flags = ("--low_rank_training", "True", *FLAGS)
    whole = fine_tune(tiny_model, data, tmp_path / "whole", *flags)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "out"
    kill(held_at(5, tmp_path / "faults", out, *fine_tune_args(tiny_model, data, out, *flags)))
    assert step_of(last_checkpoint(Location.of(str(out / "checkpoints")))) == 3
    done = fine_tune(tiny_model, data, out, *flags)
    assert done.returncode == 0, done.stderr
    found, reference = dict(losses(out)), dict(losses(tmp_path / "whole"))
    assert found == pytest.approx(reference, rel=2e-3)


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_examples(tmp_path, tiny_model):
    data, out = write_examples(tmp_path / "train.json", 8), tmp_path / "out"
    done = fine_tune(
        tiny_model, data, out, "--num_train_epochs", "9", "--learning_rate", "1e30", "--warmup_steps", "0",
        "--max_grad_norm", "0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "non-finite loss at step" in done.stderr
    assert "train.json:" in done.stderr
    assert not (out / "model").exists()
