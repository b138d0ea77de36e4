"""Where a model may be written, and which checkpoint counts."""

import json

import pytest
from ray.train import Checkpoint

from qaray.config import ConfigError
from qaray.finetune.checkpoints import ACCOUNT, COPY, AccountKeeper, last_checkpoint, mend_account
from qaray.finetune.export import writable
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


def test_the_last_whole_checkpoint_is_the_one_that_all_ranks_reported(tmp_path):
    for name in ("checkpoint_1", "checkpoint_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / TRAINING).write_text("{}")
    place = Location.of(str(tmp_path))
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        last_checkpoint(place)
    account = {"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_1"}}
    (tmp_path / ACCOUNT).write_text(json.dumps(account))
    assert last_checkpoint(place).name == "checkpoint_1"
    assert last_checkpoint(place / "checkpoint_2").name == "checkpoint_2"


def test_a_torn_account_of_checkpoints_is_mended_from_its_copy(tmp_path):
    place = Location.of(str(tmp_path))
    whole = json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_1"}})
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / "checkpoint_1" / TRAINING).write_text("{}")
    (tmp_path / ACCOUNT).write_text(whole)
    AccountKeeper(place).after_report(None, [], Checkpoint(str(tmp_path / "checkpoint_1")))
    (tmp_path / ACCOUNT).write_text(whole[:40])
    AccountKeeper(place).after_report(None, [], Checkpoint(str(tmp_path / "checkpoint_1")))  # keeps the copy
    assert last_checkpoint(place).name == "checkpoint_1"
    mend_account(place)
    assert json.loads((tmp_path / ACCOUNT).read_text()) == json.loads(whole)
    mend_account(place)  # a whole one stays

    (tmp_path / COPY).unlink()
    (tmp_path / ACCOUNT).write_text("")
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        last_checkpoint(place)
    mend_account(place)
    assert not (tmp_path / ACCOUNT).exists()
