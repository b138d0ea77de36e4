import json
import shutil
from pathlib import Path

import pytest

from qaray.asking.templates import LLAMA2, Template
from qaray.config import ConfigError, GenerateConfig
from qaray.models.catalogue import resolve
from qaray.models.contract import CONTRACT, Contract
from qaray.models.planner import plan_model
from qaray.models.rope import rope_factor
from tests.conftest import save_tiny_model


def config(model, **values):
    return GenerateConfig(**{"file_path": "-", "output_dir": "-", "base_model": model, "max_gen_len": 64, **values})


@pytest.mark.parametrize(
    ("length", "own", "factor", "expected"),
    [
        (8192, 8192, 1.0, 1.0),
        (8193, 8192, 1.0, 2.0),
        (16384, 8192, 1.0, 2.0),
        (16385, 8192, 1.0, 3.0),
        (12288, 4096, 4.0, 4.0),  # vicuna-7b-v1.5-16k at the seed's length: nothing to do
        (
            32768,
            4096,
            4.0,
            8.0,
        ),  # multiplied: replacing the factor would give 8 positions fewer a step than trained
        (12288, 4096, 1.0, 3.0),
    ],
)
def test_rope_factor(length, own, factor, expected):
    assert rope_factor(length, own, factor) == expected


def test_plan_follows_the_model(tiny_model):
    assert plan_model(config(tiny_model)).context_size == 512
    longer = plan_model(config(tiny_model, context_size=1500, seq_len=1400))
    assert (longer.context_size, longer.seq_len, longer.rope_factor) == (1500, 1400, 3.0)
    with pytest.raises(ConfigError, match="seq_len 600 exceeds context_size 512"):
        plan_model(config(tiny_model, seq_len=600))


def test_another_rope_type_is_refused(tmp_path):
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
    folder = save_tiny_model(tmp_path / "yarn", rope_parameters=rope)
    assert plan_model(config(folder)).rope_factor == 1.0
    with pytest.raises(ConfigError, match="RoPE type 'yarn', which is not changed"):
        plan_model(config(folder, context_size=2048))


def test_linear_scaling_of_the_config_counts(tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder = save_tiny_model(tmp_path / "linear", rope_parameters=rope)
    assert plan_model(config(folder)).context_size == 2048
    assert plan_model(config(folder)).rope_factor == 4.0
    assert plan_model(config(folder, context_size=2049)).rope_factor == 8.0


def test_the_contract_binds(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "tuned")
    template = Template("file", "T {instruction} {input}")
    contract = Contract(
        template_name="file",
        template_text=template.text,
        template_sha256=template.sha256,
        context_size=1024,
        rope_factor=2.0,
    )
    contract.save(str(folder))
    found = plan_model(config(str(folder)))
    assert (found.context_size, found.rope_factor, found.template) == (1024, 2.0, template)
    assert plan_model(config(str(folder), context_size=512)).rope_factor == 2.0  # as trained, whatever the run's length
    with pytest.raises(ConfigError, match="context_size 2048 exceeds the 1024 tokens"):
        plan_model(config(str(folder), context_size=2048))
    with pytest.raises(ConfigError, match="is not the template that"):
        plan_model(config(str(folder), prompt_template="llama2"))
    values = json.loads((folder / CONTRACT).read_text())
    (folder / CONTRACT).write_text(json.dumps({**values, "template_text": LLAMA2}))
    with pytest.raises(ConfigError, match="does not match its hash"):
        plan_model(config(str(folder)))
    (folder / CONTRACT).write_text("{")
    with pytest.raises(ConfigError, match="is corrupt"):
        plan_model(config(str(folder)))


def test_names(tmp_path):
    assert resolve("org/model", "cache") == "org/model"
    assert Path(resolve("bundled:minilm", "cache"), "model.safetensors").exists()
    for bad, words in (("bundled:x", "there are bundled:smollm2-135m"), ("./nowhere", "no such folder")):
        with pytest.raises(ConfigError, match=words):
            resolve(bad, "cache")


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer could be loaded") as error:
        plan_model(config(str(tmp_path)))
    assert "\n" not in str(error.value)
