"""The training loop without Ray: when it saves and evaluates, and which failures are final."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import ray.train
import torch

from qaray.config import ConfigError
from qaray.finetune import attention, loop
from qaray.finetune.callback import EMPTY_LOG, device_notes
from tests.training import small_settings, small_trainer, write_shard

EXAMPLES = [([2, 3, 4, 5, 6 + i], 3) for i in range(6)]  # three batches of two: an epoch has three steps
STRATEGIES = [
    # flags; steps of checkpoints; steps of evaluations
    ({"save_strategy": "no", "eval_strategy": "no"}, [6], [0, 6]),
    ({"save_strategy": "epoch", "eval_strategy": "epoch"}, [3, 6], [0, 3, 6]),
    ({"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4}, [2, 4, 6], [0, 4, 6]),
    ({"save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 4}, [3, 4], [0, 3, 4]),
    ({"save_strategy": "no", "eval_strategy": "epoch", "logging_strategy": "epoch"}, [6], [0, 3, 6]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "saved", "evaluated"), STRATEGIES)
def test_the_last_step_is_saved_and_evaluated_once(tmp_path, monkeypatch, tiny_model, flags, saved, evaluated):
    reports = []

    def report(metrics, checkpoint, **_):
        reports.append((metrics["step"], json.loads((Path(checkpoint.path) / "trainer_state.json").read_text())))

    monkeypatch.setattr(ray.train, "report", report)
    train, held_out = write_shard(tmp_path / "train", EXAMPLES), write_shard(tmp_path / "eval", EXAMPLES[:2])
    values = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "logging_steps": 1, **flags}
    trainer = small_trainer(tmp_path, tiny_model, train, held_out, **values)
    trainer.args.eval_on_start = True
    trainer.train()
    assert [step for step, _ in reports] == saved
    history = json.loads((tmp_path / "training.json").read_text())["log"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == evaluated
    last = reports[-1][1]["log_history"]  # the checkpoint that is exported contains the last losses, for its card
    assert [entry["step"] for entry in last if "eval_loss" in entry] == evaluated
    assert max(entry["step"] for entry in last if "loss" in entry) == saved[-1]


@pytest.fixture
def settings(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    return small_settings(tmp_path, tiny_model, write_shard(tmp_path / "train", EXAMPLES))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConfigError("model x: no such folder\nmore"), "model x: no such folder"),
        (ValueError("bad value"), "ValueError: bad value"),
        (KeyError("stage"), "KeyError: 'stage'"),
        (ImportError(), "ImportError: ImportError"),
        (AssertionError("optimizer"), "AssertionError: optimizer"),
        (RuntimeError("connection closed by peer"), None),
        (OSError("no route to host"), None),
    ],
)
def test_a_failed_set_up_is_final_unless_a_peer_or_the_storage_was_lost(settings, monkeypatch, error, failure):
    before = {**EMPTY_LOG, "step": 4, "steps": 9, "log": [{"step": 4, "loss": 1.0}]}
    settings.log.write_json(before)
    tries = []

    def fail(*_):
        tries.append(1)
        raise error

    monkeypatch.setattr(loop, "make_trainer", fail)
    with pytest.raises(type(error)):
        loop.train_loop({"settings": settings})
    assert settings.log.read_json() == {**before, "failure": failure or ""}
    if failure is None:
        with pytest.raises(type(error)):
            loop.train_loop({"settings": settings})
    else:
        loop.train_loop({"settings": settings})  # the next attempt of the worker group
    assert len(tries) == (1 if failure else 2)


def test_a_failed_set_up_without_a_log_leaves_one_that_readers_know(settings):
    broken = replace(settings, flags={**settings.flags, "learning_rate": "hot"})
    with pytest.raises(ConfigError):
        loop.train_loop({"settings": broken})
    log = settings.log.read_json()
    assert "learning_rate" in log["failure"]
    assert {**log, "failure": ""} == EMPTY_LOG


def test_an_error_after_training_has_begun_is_not_final(settings, monkeypatch):
    def fail(*_):
        raise ValueError("a torn read")

    monkeypatch.setattr(loop.AnswerTrainer, "training_step", fail)
    with pytest.raises(ValueError, match="a torn read"):
        loop.train_loop({"settings": settings})
    log = settings.log.read_json()
    assert (log["step"], log["failure"]) == (0, "")
    assert log["engine"]["attention"] == "sdpa"
    assert isinstance(log["engine"]["notes"], list)


@pytest.mark.parametrize(("full", "kind"), [(True, "full attention"), (False, "S²-Attn")])
def test_missing_flash_attn_is_noted(settings, monkeypatch, full, kind):
    monkeypatch.setattr(attention, "flash_attn_missing", lambda config, device: device.type == "cuda")
    settings = replace(settings, config=settings.config.replace(use_full_attn=full))
    assert device_notes(settings, torch.device("cpu")) == []
    (note,) = device_notes(settings, torch.device("cuda"))
    assert note.startswith(f"flash-attn is not installed: {kind} runs on scaled_dot_product_attention; pip install ")
