"""A --config file means what the same words mean on the command line, and is refused in a line."""

import pytest

from qaray.cli import main
from qaray.config import MOST_SHOWN, ConfigError, GenerateConfig
from qaray.run.config_file import MOST_BYTES, read_config

NEEDED = {"file_path": "p", "output_dir": "o", "engine": "echo"}


def config_of(tmp_path, text):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    return GenerateConfig(**{**NEEDED, **read_config(str(path))})


@pytest.mark.parametrize(
    ("line", "flag", "value"),
    [
        ("actors: 1:8", "actors", "1:8"),  # YAML 1.1: 68, in base 60
        ("actors: 2", "actors", "2"),
        ("limit: 010", "limit", 10),  # 8
        ("limit: 1_000", "limit", 1000),
        ("language: no", "language", "no"),  # False
        ("base_model: 2024-05-01", "base_model", "2024-05-01"),  # a date
        ("temperature: 1e-1", "temperature", 0.1),  # text
        ("no_progress: on", "no_progress", True),
        ("flash_attn: False", "flash_attn", False),
        ("limit: ~", "limit", None),
        ("limit:", "limit", None),
        ("language: 'null'", "language", "null"),
        ("vllm_args: '{\"a\": 1}'", "vllm_args", '{"a": 1}'),
    ],
)
def test_values_are_read_as_they_are_written(tmp_path, line, flag, value):
    assert config_of(tmp_path, line).values()[flag] == value


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limit: 1\nseed: 2\nlimit: 3", "line 3: limit occurs twice"),
        (BOMB, "line 2: aliases (*name) are not supported"),
        ("file_path: " + "[" * 2000 + "]" * 2000, "more than 4 levels"),
        ("limit: [1", "line 1: "),
        ("- limit", "must contain keys and values"),
        ("1: 2\n[a]: 3", "line 2: found unhashable key"),
        ("a: 1\n---\nb: 2", "line 2: "),
        ("x: " + "y" * MOST_BYTES, "more than 1,048,576 bytes"),
        ("limit: \0", "flags.yaml: "),
        ("limit: {a: 1}", "--limit must be a valid integer, got {'a': '1'}"),
        ('language: "\\ud800"', "--language must be valid Unicode text without NUL"),
        ('language: "a\\0b"', "--language must be valid Unicode text without NUL"),
    ],
)
def test_what_is_refused_is_a_line(tmp_path, text, words):
    with pytest.raises(ConfigError) as refused:
        config_of(tmp_path, text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "flag", ["limit", "actors", "base_url", "vllm_args", "temperature", "node_labels", "no_progress"]
)
@pytest.mark.parametrize(
    "value", ["x" * 50_000, ["y" * 50_000] * 50, {"z" * 9_000: "w" * 9_000}], ids=["text", "list", "mapping"]
)
def test_an_error_quotes_the_beginning_of_a_value(flag, value):
    with pytest.raises(ConfigError) as refused:
        GenerateConfig(**NEEDED, **{flag: value})
    assert len(str(refused.value)) < MOST_SHOWN + 120


def test_the_line_of_an_error_is_bounded(capsys):
    assert main(["generate", "--num_qas", "9" * 100_000, "--file_path", "p", "--output_dir", "o"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert len(told) < 1000


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "folder"], ids=str)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, capsys):
    path = tmp_path / "flags.yaml"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    assert main(["generate", "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"--config {path}" in told
    assert told.count("\n") == 1
