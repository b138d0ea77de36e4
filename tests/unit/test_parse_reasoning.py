"""Where reasoning and turns begin and end, by position."""

import pytest

from qaray.asking.parsing.reasoning import answer_text, reasoning_spans


@pytest.mark.parametrize(
    ("before", "reasoning", "after"),
    [
        ("", "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>", "Q1: b"),
        ("", "<|channel|>analysis<|message|>so assistantfinal ", "Q1: b"),
        ("", "Thinking...\na\n...done thinking.", "\nQ1: b"),
        ("Sure. ", "<think>a</think>", "\nQ1: b"),
        ("<|end|>", "<|channel|>analysis<|message|>a<|end|>", "Q1: b"),
        ("a\nb\n", "<think>c", ""),
        ("> ", "<think>c", ""),
        ("**", "<think>c", ""),
    ],
)
def test_spans_of_reasoning(before, reasoning, after):
    end = len(before) + len(reasoning)
    assert reasoning_spans(before + reasoning + after) == [(len(before), end)]


@pytest.mark.parametrize("text", ["a\nb<think>c", "a\nIt prints <think>c"])
def test_a_tag_within_a_line_is_text(text):
    assert reasoning_spans(text) == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("a<think>b</think>\nC", "a\n\nC"),
        (" a <|im_end|>\nb", " a "),
        ("so it is.<|im_end|>\nMore", "so it is."),
        ("The <|im_end|> token and the [INST] tag stay.", "The <|im_end|> token and the [INST] tag stay."),
        ("The <|im_end|> token stays.<|im_end|>\nMore", "The <|im_end|> token stays."),
        ("<|im_end|>\na<|im_end|>b", "a"),
    ],
)
def test_the_first_turn_with_text_is_the_answer(text, answer):
    assert answer_text(text) == answer
