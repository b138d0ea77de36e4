"""How an answer of another engine ended, and where its choices part."""

import pytest

from qaray.asking.grammar import answer_end, stop_strings
from qaray.config import ConfigError, EvaluateConfig, GenerateConfig
from qaray.engines.choices import tokenised
from qaray.engines.endings import ending
from qaray.engines.worker import WorkerInfo, resolve_engine, resume_engine
from qaray.models.tokenizer import load_tokenizer
from qaray.schema import FinishReason

LOOP = list(range(50)) * 5


@pytest.mark.parametrize(
    ("text", "tokens", "at_limit", "ended", "expected"),
    [
        ("Q1: a?\nA1: b.\nQ2: c?", [1], False, False, ("Q1: a?\nA1: b.", FinishReason.STOP)),
        ("Q1: a?\nA1: b.", [1], False, True, ("Q1: a?\nA1: b.", FinishReason.STOP)),
        ("Q1: a?\nA1: b", [1], True, False, ("Q1: a?\nA1: b", FinishReason.LENGTH)),
        ("Q1: a", LOOP, True, False, ("Q1: a", FinishReason.REPETITION)),
        ("Q1: a", LOOP, False, False, ("Q1: a", FinishReason.REPETITION)),
        ("Q1: a", LOOP, False, True, ("Q1: a", FinishReason.STOP)),  # it found its way out
    ],
)
def test_ending(text, tokens, at_limit, ended, expected):
    assert ending(text, tokens, 1, at_limit=at_limit, ended=ended) == expected


def test_stop_strings_are_ends_of_the_grammar():
    for text in stop_strings(5):
        assert answer_end(f"Q5: a?\nA5: b.{text}", 5) is not None
    assert all("6" in text or "END" in text for text in stop_strings(5)[:4])


def test_heads_are_where_choices_part(tiny_model):
    tokenizer = load_tokenizer(tiny_model, "cache")
    prefix, (each,) = tokenised(tokenizer, "rubric ", ["Score: "], ["0\n", "10\n", "100\n"], 512)
    spell = {tokenizer.decode(list(head)): [tokenizer.decode([t]) for t in to] for head, to in each.heads().items()}
    assert tokenizer.decode(prefix) == "rubric "
    assert {head.removeprefix("Score: "): sorted(to) for head, to in spell.items()} == {
        "": ["0", "1"],
        "0": ["\n"],
        "1": ["0"],
        "10": ["\n", "0"],
        "100": ["\n"],
    }
    with pytest.raises(ValueError, match="the maximum is"):
        tokenised(tokenizer, "r" * 600, ["s"], ["1"], 512)


def generation(**values):
    return GenerateConfig(file_path="p", output_dir="o", base_model="m", **values)


def test_auto_takes_vllm_where_a_worker_has_it_and_keeps_to_it():
    config, why = resolve_engine(generation(), WorkerInfo(vllm="0.32.0"), "")
    assert (config.engine, why) == ("vllm", "auto: a worker has vllm 0.32.0")
    config, why = resolve_engine(generation(), WorkerInfo(problem="it is not installed"), "")
    assert (config.engine, why) == ("transformers", "auto: no vllm on a worker (it is not installed)")
    begun, why = resume_engine(generation(), "transformers")
    assert resolve_engine(begun, WorkerInfo(vllm="0.32.0"), why) == (begun, "auto: the run was begun with it")
    assert begun.engine == "transformers"
    with pytest.raises(ConfigError, match="cannot import vllm: it is not installed"):
        resolve_engine(generation(engine="vllm"), WorkerInfo(problem="it is not installed"), "asked for")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "http"}, "--engine http requires --base_url"),
        ({"base_url": "http://x/v1"}, "--base_url requires --engine http"),
        ({"engine": "http", "base_url": "x:8000"}, "base_url must be http://"),
        ({"engine": "transformers", "structured": True}, "not supported by --engine transformers"),
        ({"vllm_args": "[1]"}, "must be a JSON object"),
    ],
)
def test_flags_of_engines_that_contradict(values, message):
    with pytest.raises(ConfigError, match=message):
        generation(**values)


def test_an_endpoint_cannot_judge():
    with pytest.raises(ConfigError, match="engine must be 'auto', 'echo', 'transformers' or 'vllm', got 'http'"):
        EvaluateConfig(output_dir="o", engine="http")
