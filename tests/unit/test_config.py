import pytest

from qaray.config import ConfigError, GenerateConfig, parse_pool


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
        ({"file_path": None}, "file_path must be a valid string"),
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


def test_every_field_says_what_it_is():
    assert not [name for name, flag in GenerateConfig.flags().items() if not flag.field.description]


def test_parse_pool():
    assert parse_pool("2") == (2, 2)
    assert parse_pool("0001:16") == (1, 16)
    for bad in ("", "0:1", "a", "2:1", "1:2:3", "-1"):
        with pytest.raises(ValueError, match="MIN:MAX"):
            parse_pool(bad)
