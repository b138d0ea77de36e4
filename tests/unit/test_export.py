"""Where a model may be written, where it stops, and which checkpoint counts."""

import asyncio
import json

import pytest

from qaray.config import ConfigError
from qaray.finetune.checkpoints import CheckpointPointer, last_checkpoint, pointer, resume_point
from qaray.finetune.export import set_special_tokens, writable
from qaray.finetune.loop import TRAINING
from qaray.models.contract import CONTRACT
from qaray.run.storage import Location


def test_an_export_overwrites_nothing_but_models(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / CONTRACT).write_text("{}")
    (tmp_path / "empty").mkdir()
    for name in ("model", "empty", "new"):
        assert writable(str(tmp_path / name)) == tmp_path / name
    for place in (str(tmp_path / "data"), str(tmp_path / "data" / "thesis.txt"), "s3://bucket/model"):
        with pytest.raises(ConfigError):
            writable(place)


EOS = [
    # the base's; after export, where the tokenizer's EOS is 1
    (None, 1),
    (1, 1),
    (7, [7, 1]),
    ([7, 9], [7, 9, 1]),
    ([1, 7], [1, 7]),
    ([], 1),
]


@pytest.mark.parametrize(("base", "expected"), EOS)
def test_the_exported_model_stops_at_the_eos_of_training(tmp_path, tiny_model, base, expected):
    """A base may have no EOS, its own, several, and a temperature without do_sample, which transformers refuses."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = "<s>"
    model.config.eos_token_id, model.config.bos_token_id, model.config.pad_token_id = base, None, None
    model.generation_config.eos_token_id, model.generation_config.bos_token_id = base, 5
    model.generation_config.temperature, model.generation_config.top_p = 0.9, 0.6
    set_special_tokens(model, tokenizer)
    model.save_pretrained(tmp_path)
    config, generation = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("config", "generation_config"))
    assert config["eos_token_id"] == generation["eos_token_id"] == expected
    assert (config["bos_token_id"], generation["bos_token_id"]) == (0, 5)
    assert (config["pad_token_id"], generation["pad_token_id"]) == (0, 0)
    assert (generation["temperature"], generation["do_sample"]) == (0.9, True)


@pytest.fixture
def account(tmp_path):
    """A run's folder as Ray Train leaves it after two checkpoints."""
    from ray.train import Checkpoint, CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext
    from ray.train.v2._internal.execution.training_report import _TrainingReport

    place = Location.of(str(tmp_path / "checkpoints"))
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="checkpoints", read_only=False)
    manager = CheckpointManager(storage_context=storage, checkpoint_config=CheckpointConfig())

    async def register(report):
        manager.register_checkpoint(report)

    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        (place / name / TRAINING).write_json({})
        checkpoint = Checkpoint(f"{place.path}/{name}")
        if name != "checkpoint_3":  # whose folder is there, but not all ranks have reported it
            asyncio.run(register(_TrainingReport(checkpoint=checkpoint, metrics={}, validation=False)))
            CheckpointPointer(place).after_report(None, [], checkpoint)
    return place, tmp_path / "checkpoints" / "checkpoint_manager_snapshot.json"


def test_the_last_whole_checkpoint_is_the_one_that_all_ranks_reported(account, tmp_path):
    place, _ = account
    assert last_checkpoint(place).name == "checkpoint_2"
    assert last_checkpoint(place / "checkpoint_3").name == "checkpoint_3"
    assert resume_point(place, print) is None  # Ray Train finds it
    with pytest.raises(ConfigError, match="no such folder"):
        last_checkpoint(Location.of(str(tmp_path / "nothing")))


@pytest.mark.parametrize("kept", [0, 40])
def test_a_torn_account_is_set_aside_and_the_pointer_counts(account, tmp_path, kept):
    place, file = account
    whole, said = file.read_text(), []
    file.write_text(whole[:kept])
    assert last_checkpoint(place).name == "checkpoint_2"
    found = resume_point(place, said.append)
    assert found == last_checkpoint(place)
    assert found.path == f"{tmp_path}/checkpoints.set-aside-1/checkpoint_2"
    assert not (tmp_path / "checkpoints").exists()
    assert resume_point(place, said.append) == found  # killed again before another checkpoint
    file.parent.mkdir()
    file.write_text(whole[:kept])  # and once more while the new account was written
    assert resume_point(place, said.append) == found
    assert (tmp_path / "checkpoints.set-aside-2").exists()
    assert [line.partition(" and ")[0] for line in said] == ["Ray Train's checkpoint index was damaged by a kill"] * 2


def test_a_torn_account_without_a_pointer_starts_over_and_says_so(account, tmp_path):
    place, file = account
    file.write_text("")
    pointer(place).remove()
    said = []
    assert resume_point(place, said.append) is None
    assert "training starts over" in said[0]
    assert (tmp_path / "checkpoints.set-aside-1" / "checkpoint_2").exists()  # nothing is deleted
