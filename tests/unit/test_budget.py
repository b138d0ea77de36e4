"""The bounds of a prompt's budget, and the place of the paper in a request for JSON."""

import pytest

from qaray.asking.budget import Budget
from qaray.asking.prompts import PromptBuilder
from qaray.asking.request import Request
from qaray.asking.templates import Template, WordTokenizer
from qaray.config import GenerateConfig
from qaray.schema import RejectReason
from tests.conftest import make_paper


def builder(text="{paper} {format}", seq_len=400, **flags):
    config = GenerateConfig(file_path="-", output_dir="-", engine="vllm", base_model="m", **flags)
    return PromptBuilder.of(config, Template("file", "{instruction} {input}"), WordTokenizer(), seq_len, Request(text))


def paper_of(words):
    return {**make_paper(0), "txt": " ".join("b" * words), "keywords": [], "row": 0}


@pytest.mark.parametrize(
    ("num_qas", "max_gen_len", "reserve"),
    [(1, 2000, 256), (2, 2000, 300), (3, 2000, 450), (3, 450, 450), (3, 449, 449)],
)
def test_the_reserve(num_qas, max_gen_len, reserve):
    budget = Budget(4000, max_gen_len, num_qas)
    assert (budget.reserve, budget.longest_prompt) == (reserve, 4000 - reserve)


@pytest.mark.parametrize(("prompt_tokens", "cap"), [(0, 200), (800, 200), (801, 199), (1000, 0), (1001, -1)])
def test_the_longest_answer(prompt_tokens, cap):
    assert Budget(1000, 200, 1).answer_cap(prompt_tokens) == cap


@pytest.mark.parametrize(("beyond", "reason"), [(0, None), (1, RejectReason.OVER_LENGTH)])
def test_a_prompt_of_exactly_the_longest_length_is_sent(beyond, reason):
    build = builder(overlength="skip", num_qas=2, max_gen_len=100)
    room = build.budget.longest_prompt - build(paper_of(0), "s")[0]["prompt_tokens"]
    row = build(paper_of(room + beyond), "s")[0]
    assert (row["prompt_tokens"], row["reason"]) == (build.budget.longest_prompt + beyond, reason)


@pytest.mark.parametrize("num_qas", [2, 5, 12])
@pytest.mark.parametrize("structured", [False, True])
def test_the_papers_place_behind_the_format(num_qas, structured):
    build = builder("{format} Text: {paper}", num_qas=num_qas, max_gen_len=100, structured=structured)
    row = build(paper_of(20), "s")[0]
    assert row["prompt"][row["paper_start"] : row["paper_end"]] == paper_of(20)["txt"]
    assert ("JSON" in row["prompt"]) == structured
