import typing

import pytest

from qaray import config as configs
from qaray.cli import CONFIGS, HEADINGS
from qaray.config import JUDGE_FLAGS, ConfigError, GenerateConfig, PipelineConfig, parse_pool


def config(**values):
    return GenerateConfig(**{"file_path": "p.json", "output_dir": "out", "base_model": "m", **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_qas": 0}, "num_qas must be between 1 and 100, got 0"),
        ({"temperature": "hot"}, "temperature must be a valid number"),
        ({"top_p": 0}, "top_p must be more than 0 and at most 1, got 0"),
        (
            {"seq_len": 16384, "context_size": 12288},
            "seq_len 16384 exceeds context_size 12288: lower --seq_len",
        ),
        ({"base_model": None}, "--base_model is required"),
        ({"actors": "3:1"}, "actors must be MIN:MAX"),
        ({"overlength": "cut"}, "overlength must be 'truncate', 'skip' or 'split'"),
        ({"batch": 3}, "unknown setting batch"),
        ({"model": "m"}, "unknown setting model"),  # the name of a group is not a flag
        ({"file_path": None}, "file_path must be a valid string"),
        ({"output_dir": ""}, "--output_dir is empty: give it a value or leave it out"),  # not the working directory
        ({"min_gen_len": 9, "max_gen_len": 8}, "min_gen_len 9 exceeds max_gen_len 8"),
    ],
)
def test_mistakes_name_field_value_and_limit(values, words):
    with pytest.raises(ConfigError) as error:
        config(**values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config().num_qas = 3


def test_echo_needs_no_model():
    assert config(base_model=None, engine="echo").model_name is None


@pytest.mark.parametrize("command", CONFIGS)
def test_every_flag_has_a_text_and_a_heading(command):
    config_type = getattr(configs, CONFIGS[command])
    for name, flag in config_type.flags().items():
        assert flag.field.description, name
        assert flag.heading in HEADINGS or name == config_type.extra_flags, name


def test_a_group_is_made_of_flat_values_and_back():
    made = config(seq_len=100, temperature=0, address="auto")
    assert (made.model.seq_len, made.sampling.temperature, made.cluster.address) == (100, 0, "auto")
    assert GenerateConfig(**made.values()) == made
    changed = made.replace(seq_len=200)
    assert (changed.model.seq_len, made.model.seq_len) == (200, 100)
    assert changed.replace(seq_len=100) == made


def test_run_passes_every_setting_of_the_judge():
    values = {"judge_context_size": 64, "judge_seq_len": 32, "judge_prompt_template": "chat", "judge_batch_tokens": 99}
    values |= {"judge_engine": "vllm", "judge_vllm_args": '{"block_size": 16}'}
    assert {name.removeprefix("judge_") for name in values} == set(JUDGE_FLAGS)
    made = PipelineConfig(file_path="p", output_dir="o", base_model="m", seq_len=128, dtype="float32", **values)
    judge = made.evaluation
    assert {f"judge_{name}": judge.values()[name] for name in JUDGE_FLAGS} == values
    assert (made.generation.model.seq_len, made.generation.engine, judge.model.dtype) == (128, "auto", "float32")
    with pytest.raises(ConfigError, match="unknown setting processed_output"):
        PipelineConfig(file_path="p", output_dir="o", base_model="m", processed_output="x")


def test_parse_pool():
    assert parse_pool("2") == (2, 2)
    assert parse_pool("0001:16") == (1, 16)
    for bad in ("", "0:1", "a", "2:1", "1:2:3", "-1"):
        with pytest.raises(ValueError, match="MIN:MAX"):
            parse_pool(bad)


ABSURD = ("9" * 30, "-2", "1e400", "nan", "inf", "x")  # for every numeric flag


@pytest.mark.parametrize("command", CONFIGS)
def test_every_number_has_bounds(command):
    """Without an upper bound, Ray, torch or the clock fail on a slip of the keyboard, each in its own way."""
    config_type = getattr(configs, CONFIGS[command])
    numbers = {
        name: flag.field
        for name, flag in config_type.flags().items()
        if any(kind in (int, float) for kind in (flag.field.annotation, *typing.get_args(flag.field.annotation)))
    }
    unbounded = [
        name for name, field in numbers.items() if not any(hasattr(m, "le") or hasattr(m, "lt") for m in field.metadata)
    ]
    assert unbounded == []
    given = {name: "x" for name, flag in config_type.flags().items() if flag.field.is_required()}
    if "base_model" in config_type.flags():
        given["engine"] = "echo"
    for name in numbers:
        for value in ABSURD:
            with pytest.raises(ConfigError, match=f"--{name} |context_size "):
                config_type(**{**given, name: value})
