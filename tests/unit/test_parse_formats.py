"""Formats that models use instead of the requested one: each row is what a narrower parser would lose or corrupt."""

import itertools
import json
import re

import jsonschema
import pytest

from qaray.asking.grammar import (
    answer_end,
    answer_format,
    json_schema,
    no_pairs,
    parse_answer,
    stop_strings,
    write_pairs,
)
from qaray.asking.parsing.json_text import TEX_COMMANDS, escaped
from qaray.asking.parsing.markers import _LANGUAGES, number_of
from qaray.asking.parsing.reasoning import answer_text, reasoning_spans
from qaray.schema import ANSWER_KEYS, QUESTION_KEYS, FinishReason, NoPairs, ParseStatus

WHY, BECAUSE, HOW, SO = "Why does basalt sink?", "It is dense.", "How deep is the trench?", "About 11 km: it varies."
TWO = [(WHY, BECAUSE), (HOW, SO)]


def pairs(text, num_qas=2, finish=None):
    return [(p["Q"], p["A"]) for p in parse_answer(text, num_qas, finish).pairs]


# JSON


def objects(question="Q", answer="A", **more):
    return [{question: q, answer: a, **more} for q, a in TWO]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(objects("question", "answer"), indent=2),
        json.dumps([dict(reversed(each.items())) for each in objects("QUESTION", "Answer")]),
        json.dumps([{"id": 7, **each, "tags": ["a", "b"], "score": 0.5} for each in objects()]),
        json.dumps(objects("instruction", "output")),
        json.dumps([{"instruction": WHY, "input": "", "output": BECAUSE}, {"input": HOW, "output": SO}]),
        json.dumps(objects("question_text", "answer_text")),
        json.dumps(objects("Frage", "Antwort")),
        json.dumps({"data": {"qa_pairs": objects()}}),
        json.dumps({"Q1": WHY, "A1": BECAUSE, "Q2": HOW, "A2": SO}),
        json.dumps({"Question 2": HOW, "Answer 2": SO, "Question 1": WHY, "Answer 1": BECAUSE}),
        json.dumps({"1": objects()[0], "2": objects()[1]}),
        json.dumps({"questions": [WHY, HOW], "answers": [BECAUSE, SO]}),
        json.dumps({WHY: BECAUSE, HOW: SO}),
        json.dumps([[WHY, BECAUSE], [HOW, SO]]),
        json.dumps([{"question": WHY}, {"answer": BECAUSE}, {"question": HOW}, {"answer": SO}]),
        json.dumps(
            [{"role": s, "content": t} for pair in TWO for s, t in zip(("user", "assistant"), pair, strict=True)]
        ),
        json.dumps([{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in TWO]),
        json.dumps({"output": f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}"}),
        json.dumps({"result": json.dumps(objects())}),
        json.dumps(json.dumps(objects())),
        f"Of course! Here they are [1]:\n~~~text\n{json.dumps(objects())}\n~~~\nAnything else {{?}}",
        "\n\n".join(f"Pair {i}:\n```json5\n{json.dumps(each)}\n```" for i, each in enumerate(objects(), 1)),
        "\n".join(json.dumps(each) for each in objects()),
        str(objects()),
        json.dumps(objects()).replace('"', "'"),
        json.dumps(objects()).replace("}", ",}").replace("]", ",]"),
        re.sub(r'"([^"]*)"', r"“\1”", json.dumps(objects())),
        json.dumps(objects(), indent=1).replace("{", "{ // a pair").replace("},", "}, /* next */"),
        json.dumps(objects(), indent=1).replace('"A"', "A").replace('"Q"', "Q"),
        json.dumps(objects()).replace("}, {", "} {"),
        f'<think>[{{"Q": "draft?", "A": "draft"}}]</think>\n{json.dumps(objects())}<|im_end|>',
        f"Q: as asked\n{json.dumps(objects())}",
    ],
)
def test_json_in_any_shape(text):
    assert sorted(pairs(text)) == sorted(TWO)
    assert parse_answer(text, 2).status == ParseStatus.COMPLETE


@pytest.mark.parametrize("question", QUESTION_KEYS)
def test_every_key_of_a_question(question):
    assert pairs(json.dumps(objects(question.title(), "Answer"))) == TWO


@pytest.mark.parametrize("answer", ANSWER_KEYS)
def test_every_key_of_an_answer(answer):
    assert pairs(json.dumps(objects("Question", answer.upper()))) == TWO


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2.50", "2.50"),
        ("-3", "-3"),
        ("true", "Yes"),
        ("false", "No"),
        ('["one", "two"]', "one\ntwo"),
        ('{"text": "one", "score": 3}', "one"),
        ('{"mass": "2 g", "age": 3}', "mass: 2 g\nage: 3"),
        ('"a \\"b\\" c"', 'a "b" c'),
        ('"a "b" c"', 'a "b" c'),
        ("'it's here'", "it's here"),
        ('"""a "b" c"""', 'a "b" c'),
        ('"{x} and [y"', "{x} and [y"),
    ],
)
def test_answers_that_are_no_plain_strings(value, text):
    assert pairs(f'[{{"Q": "{WHY}", "A": {value}}}, {{"Q": "{HOW}", "A": "{SO}"}}]') == [(WHY, text), TWO[1]]


@pytest.mark.parametrize("value", ["null", '""', "[]", "{}", '"…"', '"[answer]"'])
def test_pairs_without_an_answer_are_left_out(value):
    assert pairs(f'[{{"Q": "{WHY}", "A": {value}}}, {{"Q": "{HOW}", "A": "{SO}"}}]') == [TWO[1]]


def test_the_key_named_question_wins_over_one_that_may_be_a_question():
    both = [{"input": "a passage", "question": WHY, "answer": BECAUSE, "output": "rated 5"}]
    assert pairs(json.dumps(both)) == [TWO[0]]


def test_pairs_behind_the_key_of_an_answer_are_the_pairs():
    assert pairs(json.dumps({"instruction": "Write two pairs", "output": objects()})) == TWO


def test_json_in_an_answer_is_part_of_it():
    answer = 'Send this:\n{"question": "a?", "answer": "b"}'
    assert pairs(f"Q1: {WHY}\nA1: {answer}\nQ2: {HOW}\nA2: {SO}") == [(WHY, answer), TWO[1]]


def test_deep_and_long_json_is_read_or_given_up():
    assert pairs("[" * 5000 + json.dumps(objects()[0]) + "]" * 5000) == []
    assert pairs('{"Q": "' + "x" * 300_000 + '", "A": "y"}') == [("x" * 300_000, "y")]
    assert pairs("[{" * 3000 + json.dumps(objects()[0])) == [TWO[0]]


# LaTeX in JSON

LATEX = [
    r"\times",
    r"\frac{1}{2}",
    r"\beta",
    r"\nu",
    r"\rho_0",
    r"\text{ad}",
    r"\theta",
    r"\mu",
    r"\Delta",
    r"\underline{x}",
]
LATEX += [r"\%", r"\,", r"\(x\)", r"\{a\}", r"\nabla", r"\rightarrow", r"\upsilon", r"\tau2", r"\sqrt{2}", r"\unit{m}"]


@pytest.mark.parametrize("latex", LATEX)
@pytest.mark.parametrize("double", [False, True])
def test_latex_in_json(latex, double):
    written = latex.replace("\\", "\\\\") if double else latex
    text = f'[{{"Q": "What is {written}?", "A": "It is ${written}$, says \\"he\\"."}}]'
    assert pairs(text, 1) == [(f"What is {latex}?", f'It is ${latex}$, says "he".')]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"a\nThe b", "a\nThe b"),
        (r"a\n\nnew b", "a\n\nnew b"),
        (r"a\tb", "a\tb"),
        (r"a\r\nb", "a\r\nb"),
        (r"25 \u00b0C", "25 °C"),
        (r"a\/b", "a/b"),
        (r"it\'s", "it's"),
        (r"a\\nb", r"a\nb"),
        (r"a\nless b", "a\nless b"),
        (r"a\ni) b", "a\ni) b"),
    ],
)
def test_escapes_of_json_stay_what_they_are(written, read):
    assert json.loads(escaped(f'"{written}"')) == read


def test_the_table_of_tex_has_only_what_json_would_misread():
    assert {name[0] for name in TEX_COMMANDS} <= set("bfnrtuBRT")


# Markers


def written(template, question, answer):
    lines = []
    for number, (q, a) in enumerate(TWO, 1):
        for word, text in ((question, q), (answer, a)):
            lines.append(template.format(w=word, n=number, t=text))
    return "\n".join(lines)


FORMS = [
    "{w} {n}: {t}", "{w}{n}: {t}", "{w} #{n}: {t}", "{w} {n}. {t}", "{w} ({n}): {t}", "{w}: {t}", "{w} {n}：{t}",
    "{w} No. {n}: {t}", "{w} {n}/2: {t}", "{w} {n} - {t}", "{w} {n}) {t}", "({w} {n}) {t}", "[{w} {n}] {t}",
    "[{w}] {t}", "【{w}】{t}", "**{w} {n}:** {t}", "**{w} {n}**: {t}", "**{w} {n}: {t}**", "### {w} {n}\n{t}\n",
    "### {w} {n}: {t}", "**{w}**\n{t}", "{w}:\n{t}\n", "- {w} {n}: {t}", "> {w} {n}: {t}", "_{w} {n}_: {t}",
    "{w} {n}\n{t}", "\u200b{w} {n}: {t}", "\u00a0{w}\u00a0{n}:\u00a0{t}", "[{w}]\n{t}\n[/{w}]",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_every_language(form):
    for questions, answers in _LANGUAGES:
        for question, answer in itertools.zip_longest(questions.split("|"), answers.split("|")):
            words = question or questions.split("|")[0], answer or answers.split("|")[0]
            for case in (str.lower, str.upper, str.title):
                text = written(form, *map(case, words))
                assert pairs(text) == TWO, text


@pytest.mark.parametrize("letters", ["QA", "FA", "QR", "PR", "DR", "VA", "ВО", "qa"])
@pytest.mark.parametrize("form", [form for form in FORMS if "{n}" in form and "[" not in form and "\n" not in form])
def test_forms_of_letters(letters, form):
    assert pairs(written(form, *letters)) == TWO


@pytest.mark.parametrize(
    "text",
    [
        f"Q. {WHY}\nA. {BECAUSE}\nQ. {HOW}\nA. {SO}",
        f"[Q] {WHY} [A] {BECAUSE}\n[Q] {HOW} [A] {SO}",
        f"<qa_pairs><qa><question>{WHY}</question><answer>{BECAUSE}</answer></qa>"
        f"<qa><question>{HOW}</question><answer>{SO}</answer></qa></qa_pairs>",
        f'<Q1>{WHY}</Q1>\n<A1 kind="x">{BECAUSE}</A1>\n<note>n</note>\n<Q2>{HOW}</Q2>\n<A2>{SO}</A2>\nDone.',
        f"<answer>\nQ1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}\n</answer>",
        f"| No | Question | Answer | Page |\n|:--|--|:-:|--|\n| 1 | {WHY} | {BECAUSE} | 3 |\n| 2 | {HOW} | {SO} | 4 |",
        f"Answer | Question\n--- | ---\n{BECAUSE} | {WHY}\n{SO} | {HOW}\n\nThat is all.",
        f"1. {WHY}\n→ {BECAUSE}\n2. {HOW}\n→ {SO}",
        f"1. {WHY}\n   - {BECAUSE}\n2. {HOW}\n   - {SO}",
        f"1. {WHY} → {BECAUSE}\n2. {HOW} → {SO}",
        f"1. {WHY} - {BECAUSE}\n2. {HOW} — {SO}",
        f"**{WHY}**\n\n{BECAUSE}\n\n**{HOW}**\n\n{SO}",
        f"## {WHY}\n{BECAUSE}\n## {HOW}\n{SO}\n\nLet me know if you want more!",
        f"Q1: {WHY}\n{BECAUSE}\n\nQ2: {HOW}\n{SO}",
        f"Questions:\n1. {WHY}\n2. {HOW}\n\nAnswers:\n1. {BECAUSE}\n2. {SO}",
        f"## Questions\n- {WHY}\n- {HOW}\n## Answers\n- {BECAUSE}\n- {SO}",
        f"**Questions**\n\nQ1: {WHY}\nQ2: {HOW}\n\n**Answers**\n\nA1: {BECAUSE}\nA2: {SO}",
        f"Q1: {WHY}\nQ2: {HOW}\nA2: {SO}\nA1: {BECAUSE}",
        f"Q: {WHY}\nQ: {HOW}\nA: {BECAUSE}\nA: {SO}",
        f"A1: {BECAUSE}\nQ1: {WHY}\nA2: {SO}\nQ2: {HOW}",
        f"Q1: {WHY} A1: {BECAUSE} Q2: {HOW} A2: {SO}",
        f"Question: {WHY} Answer: {BECAUSE} Question: {HOW} Answer: {SO}",
        f"(Q1) {WHY} (A1) {BECAUSE} (Q2) {HOW} (A2) {SO}",
        f"Q1: {WHY}\nType: causal\nA1: {BECAUSE}\nSource: Section 2\n\nQ2: {HOW}\nA2: {SO}\n**Difficulty:** easy",
        f"Q1: {WHY}\nA1: {BECAUSE}\nExplanation: it is heavy.\nAll is.\n\nQ2: {HOW}\nA2: {SO}\nPage: 3\nTopic: 1",
        f"Pair 1\nQ: {WHY}\nA: {BECAUSE}\n\n---\n\nPair 2\nQ: {HOW}\nA: {SO}\n\n---",
        f"### Q&A 1\n**Q:** {WHY}\n**A:** {BECAUSE}\n\n### Q&A 2\n**Q:** {HOW}\n**A:** {SO}",
        f"```\nQ1: {WHY}\nA1: {BECAUSE}\n```\n```\nQ2: {HOW}\nA2: {SO}\n```",
        f"Write them as\nQ1: [question]\nA1: [answer]\n\nQ1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}",
        f"Question I: {WHY}\nAnswer I: {BECAUSE}\nQuestion II: {HOW}\nAnswer II: {SO}",
        f"问题一：{WHY}\n答案一：{BECAUSE}\n问题二：{HOW}\n答案二：{SO}",
        f"\ufeffQ\u200b1: {WHY}\u200e\nA\u200d1: {BECAUSE}\n\u2060Q2: {HOW}\nA2: {SO}\u00ad",
    ],
)
def test_layouts(text):
    found = pairs(text)
    assert sorted(found) == sorted(TWO)
    assert found[0] == TWO[0] or text.startswith(("Q1: Why does basalt sink?\nQ2", "Answer |"))


@pytest.mark.parametrize(
    ("number", "value"),
    [(None, None), ("", None), ("7", 7), ("٣", 3), ("三", 3), ("十", 10), ("十二", 12), ("二十", 20), ("二十一", 21),
     ("iv", 4), ("VIII", 8), ("xix", 19)],
)  # fmt: skip
def test_numbers_of_markers(number, value):
    assert number_of(number) == value


# What looks like a marker and is none


@pytest.mark.parametrize(
    "answer",
    [
        "The coefficients:\nQ10: 2.1 at 300 K.\nQ20: 4.4 at 310 K.",
        "Two grades.\nA: good\nB: bad",
        "It follows Q: heat, as in\nQ = mc.\nA. thaliana was grown.\nQ. robur too.",
        "Steps:\n1. heat\n2. cool\n3. wait?",
        "Questions remain.\nAnswers: none.",
        "See the answer (A2) and question Q2: both differ.",
        "Use\n```\nA: 3\n```\nas input.",
        "Type: laser\nPower: 5 mW\nThe source was on.",
        "The list is:\nSource: argon lamp",
        "It has 3 parts:\n\n---\n\nEach is cut.",
        "The tags <b>x</b> and <question> stay.",
        "Persian \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 keeps its joiner.",
    ],
)
@pytest.mark.parametrize("number", ["1", ""])
def test_text_of_answers(answer, number):
    two = "2" * bool(number)
    if not number and "Two grades" in answer:
        pytest.skip("an answer marker without a number may be either")
    assert pairs(f"Q{number}: {WHY}\nA{number}: {answer}\n\nQ{two}: {HOW}\nA{two}: {SO}") == [(WHY, answer), TWO[1]]


def test_no_answer_goes_to_another_question():
    assert pairs(f"Q1: {WHY}\nQ2: {HOW}\nA2: {SO}") == [TWO[1]]
    assert pairs(f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: lost\nQ3: {HOW}\nA3: {SO}") == TWO
    assert pairs(f"Q1: {WHY}\nA1: {BECAUSE}\nA2: lost\nQ3: {HOW}\nA3: {SO}") == TWO
    assert pairs(f"Questions:\n1. {WHY}\n2. {HOW}\nAnswers:\n2. {SO}") == [TWO[1]]
    assert pairs(f"1. {WHY}\n2. {HOW}\n3. Who?") == []


def test_a_question_without_an_answer_at_the_end_is_cut_off():
    for text in (f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: Ho", f"Q: {WHY}\nA: {BECAUSE}\n\nQ: Ho"):
        assert (pairs(text), parse_answer(text, 2).status) == (TWO[:1], ParseStatus.TRUNCATED)


# Reasoning, turns


@pytest.mark.parametrize(
    "reasoning",
    [
        "<think>{}</think>", "<THINKING>\n{}\n</THINKING>\n", "[THINK]{}[/THINK]", "◁think▷{}◁/think▷", "{}</think>\n",
        "<|begin_of_thought|>{}<|end_of_thought|>\n<|begin_of_solution|>", "<|START_THINKING|>{}<|END_THINKING|>",
        "<seed:think>{}</seed:think>", "<reasoning>{}</reasoning>", "<thought>{}</thought>", "<analysis>{}</analysis>",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
        "analysis{}assistantfinal", "<|channel>thought\n{}<channel|>", "<think>{}</think><think>again</think>\n",
        "Here is my thought process:\n{}\nHere is my response:\n", "Thinking...\n{}\n...done thinking.\n\n",
        "<think>\n{}\nI close it with </think> later.\n</think>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("draft", ["Q1: Draft?\nA1: draft.", 'Draft: {"Q": "a?", "A": "b"}'])
def test_reasoning_never_becomes_a_pair(reasoning, draft):
    text = reasoning.replace("{}", draft)
    two = f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}"
    assert pairs(text + two) == TWO
    assert pairs(text + json.dumps(objects())) == TWO
    assert answer_end(text + two + "\n\nQ3: more", 2) == len(text + two)


@pytest.mark.parametrize(
    "begun", ["<think>\n", "[THINK]", "◁think▷", "<|channel|>analysis<|message|>", "ok</think>\n<think>"]
)
def test_unfinished_reasoning_has_no_pairs(begun):
    text = f"{begun}Q1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}"
    assert pairs(text) == []
    assert no_pairs(text) == NoPairs.REASONING_ONLY
    assert answer_end(text, 1) is None


def test_tags_that_an_answer_speaks_of_are_text():
    answer = "Text between <think> and </think> is dropped, and the </think> tag is kept."
    assert pairs(f"Q1: {WHY}\nA1: {answer}\nQ2: {HOW}\nA2: {SO}") == [(WHY, answer), TWO[1]]
    assert reasoning_spans("It prints <think> first.") == []


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "</s>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>",
     "<|return|>",
     "<|im_end|>\n<|im_start|>user\nMore", "</s>[INST] More [/INST]", "<end_of_turn>\n<start_of_turn>user\nMore"],
)  # fmt: skip
def test_turn_tokens_never_stay(token):
    assert pairs(f"<|im_start|>assistant\nQ1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}{token}") == TWO


def test_an_echoed_prompt_is_left_out():
    assert answer_text("<s>[INST] Q1: a\nA1: b [/INST] Q1: c") == " Q1: c"


# What a text without pairs is


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", NoPairs.EMPTY),
        (" \n\ufeff", NoPairs.EMPTY),
        ("<|im_end|>", NoPairs.EMPTY),
        ("<think>x</think>", NoPairs.REASONING_ONLY),
        ("<think>x", NoPairs.REASONING_ONLY),
        ("I'm sorry, but I can't help with that.", NoPairs.REFUSED),
        ("Unfortunately, I cannot read the paper.", NoPairs.REFUSED),
        ("As an AI model, I am not able to do so.", NoPairs.REFUSED),
        ("Please provide the text.", NoPairs.REFUSED),
        ("It seems that no paper was attached.", NoPairs.REFUSED),
        ('[{"Q": "Why does', NoPairs.BROKEN_JSON),
        ('```json\n{"pairs": []}\n```', NoPairs.BROKEN_JSON),
        ('Here: "question": "Why?"', NoPairs.BROKEN_JSON),
        ("Q1: …\nA1: …", NoPairs.UNANSWERED),
        (f"1. {WHY}\n2. {HOW}", NoPairs.UNANSWERED),
        ("Basalt sinks since it is dense.", NoPairs.PROSE),
        ("The set {x: x > 0} is open.", NoPairs.PROSE),
    ],
)
def test_what_a_text_without_pairs_is(text, kind):
    assert parse_answer(text, 2).status == ParseStatus.MALFORMED
    assert no_pairs(text) == kind


def test_cut_off_json_keeps_its_whole_pairs():
    text = json.dumps(objects())
    cut = parse_answer(text[: len(text) - 12], 2, FinishReason.LENGTH)
    assert ([(p["Q"], p["A"]) for p in cut.pairs], cut.status) == ([TWO[0]], ParseStatus.TRUNCATED)


# What a wider parser would take for something else


@pytest.mark.parametrize(
    "answer",
    [
        "–0.65 V against the electrode.",
        "- 5 °C at night.",
        ">> 99 % of it.",
        "→ Na+ moves.",
        "*E. coli* grew.",
        "`x = 3` is set.",
        "__init__ is called.",
        "It is 3.",
        "The cell had three parts.\nReference: Ag/AgCl",
        "The lines are clear.\nEvidence: a peak at 3 eV.\nIt is sharp.",
        "Two sites:\nQ4: good\nA4: bad",
        "The survey asked:\nQ1: How old?\nA1: 40.",
        "Rate = k [A] [B], with (Q) fixed.",
        "P: 0.05\nR: 0.9",
        "The result was\n\nItem three",
        "If you have a film, it peels.\n\nIt then bends.",
        "<a> and <q> are tags, as in x <a> y.",
        "Choices:\nA. one\nB. two",
        "Ask one question, give one answer.",
    ],
)
def test_more_text_of_answers(answer):
    assert pairs(f"Q1: {WHY}\nA1: {answer}\n\nQ2: {HOW}\nA2: {SO}") == [(WHY, answer), TWO[1]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"Q1: {WHY}\nA1: **{BECAUSE}**\nQ2: **{HOW}**\nA2: {SO}", TWO),
        (f"* **Question:** {WHY}\n* **Answer:** {BECAUSE}\n* **Question:** {HOW}\n* **Answer:** {SO}", TWO),
        (f"> **Q1:** {WHY}\n>\n> **A1:** {BECAUSE}\n\n> **Q2:** {HOW}\n>\n> **A2:** {SO}", TWO),
        (f"Q1: {WHY} A1: It is 3. Q2: {HOW} A2: {SO}", [(WHY, "It is 3."), TWO[1]]),
        (f"Q1: {WHY} A1: 1.6 eV Q2: {HOW} A2: {SO}", [(WHY, "1.6 eV"), TWO[1]]),
        (f"Q1. {WHY} A1. {BECAUSE} Q2. {HOW} A2. {SO}", TWO),
        (f"Q1: {WHY} / A1: {BECAUSE}\nQ2: {HOW} | A2: {SO}", TWO),
        ("Q1：为什么？A1：因为。Q2：多深？A2：很深。", [("为什么？", "因为。"), ("多深？", "很深。")]),
        (f"Q1: {WHY}\nA1: {BECAUSE}\nQ1: {HOW}\nA2: {SO}", TWO),
        (f"Q1: {WHY}\nA1: {BECAUSE}\nQ3: {HOW}\nA4: {SO}", TWO),
        (f"A: lost\nQ: {WHY}\nA: {BECAUSE}\nQ: {HOW}\nA: {SO}\nQ: Wh", TWO),
        (f"{WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}", TWO),
        (f"Q1: Q1: {WHY}\nA1: A1: {BECAUSE}\nQ2: 2. {HOW}\nA2: {SO}", TWO),
        (f"Question 1 (easy): {WHY}\nModel answer: {BECAUSE}\nQuestion 2 (hard): {HOW}\nModel answer: {SO}", TWO),
        (f"Question 1: {WHY}\nAnswer to Question 1: {BECAUSE}\nQuestion 2: {HOW}\nAnswer to Question 2: {SO}", TWO),
        (f"Query: {WHY}\nAnswer: {BECAUSE}\nQuery: {HOW}\nAnswer: {SO}", TWO),
        (f"### Instruction:\n{WHY}\n### Response:\n{BECAUSE}\n### Instruction:\n{HOW}\n### Response:\n{SO}", TWO),
        (f"User: {WHY}\nAssistant: {BECAUSE}\nUser: {HOW}\nAssistant: {SO}", TWO),
        (f"<b>Q1:</b> {WHY}<br>\n<b>A1:</b> {BECAUSE}<br><br>\n<b>Q2:</b> {HOW}<br>\n<b>A2:</b> {SO}", TWO),
        (f"🔍 Q1: {WHY}\n💬 A1: {BECAUSE}\n\n🔍 Q2: {HOW}\n💬 A2: {SO}", TWO),
        (f"1. {WHY}\n2. {HOW}\n\nAnswers:\n1. {BECAUSE}\n2. {SO}", TWO),
        (f"Q1: {WHY}\nQ2: {HOW}\n\n**Answers**\n1. {BECAUSE}\n2. {SO}", TWO),
        (f"1. {WHY}\n{BECAUSE}\n\n2. Name the depth.\n{SO}", [TWO[0], ("Name the depth.", SO)]),
        (f"- **{WHY}**\n  {BECAUSE}\n- **{HOW}**\n  {SO}", TWO),
        (f"```text\nQ1: {WHY}\nA1: {BECAUSE}\n```\n\n```text\nQ2: {HOW}\nA2: {SO}\n```", TWO),
        (f"## Pair 1\nQ: {WHY}\nA: {BECAUSE}\n\n## Pair 2 – Depth\nQ: {HOW}\nA: {SO}", TWO),
        ("P: 0.05\nR: 0.9\nP: 0.01\nR: 0.8", []),
        (f"<|start|>assistant<|channel|>final<|message|>Q1: {WHY}\nA1: {BECAUSE}<|x_y|>", TWO[:1]),
        (f"[gMASK]<sop>Q1: {WHY}\nA1: {BECAUSE}", TWO[:1]),
        (f"<|start_of_role|>assistant<|end_of_role|>Q1: {WHY}\nA1: {BECAUSE}", TWO[:1]),
        (f"analysis\nQ1: no?\nA1: no\n\nfinal\n\nQ1: {WHY}\nA1: {BECAUSE}", TWO[:1]),
        (json.dumps([{"instruction": "Answer.", "input": WHY, "output": BECAUSE}]), TWO[:1]),
        (json.dumps([{"instruction": "Say why", "input": "of it", "output": BECAUSE}]), [("Say why\nof it", BECAUSE)]),
        (json.dumps([{"question": WHY, "answer": {"value": "1.6", "unit": "eV"}}]), [(WHY, "1.6 eV")]),
        (json.dumps({"questions": {"1": WHY, "2": HOW}, "answers": {"1": BECAUSE, "2": SO}}), TWO),
        (f'{{"Q": "{WHY}", "A": "{BECAUSE}", "Q": "{HOW}", "A": "{SO}"}}', TWO),
        (json.dumps([{"question": WHY, "correct_answer": BECAUSE}, {"question": HOW, "reference_answer": SO}]), TWO),
        (json.dumps([f"Q: {WHY}", f"A: {BECAUSE}", f"Q: {HOW}", f"A: {SO}"]), TWO),
        (json.dumps([{"Q": WHY, "A": json.dumps(objects("q", "a")[1:])}]), [(WHY, json.dumps(objects("q", "a")[1:]))]),
    ],
)  # fmt: skip
def test_more_formats(text, found):
    assert pairs(text) == found


@pytest.mark.parametrize(
    "remark",
    [
        "I hope this helps!", "Let me know if you need more.", "These questions cover the paper.", "**END**",
        "---\nDone.",
        "Note: all answers are from the text.", "Please tell me whether the pairs suit you.", "Ich hoffe, das hilft!",
        "If needed, I can add more questions.", "Total: 2 pairs\n\nHope it helps.",
    ],
)  # fmt: skip
def test_closing_remarks_are_no_part_of_the_last_answer(remark):
    assert pairs(f"Q1: {WHY}\nA1: {BECAUSE}\n\nQ2: {HOW}\nA2: {SO}\n\n{remark}") == TWO


@pytest.mark.parametrize("last", ["These pairs of plates are old.", "Note: it was dry.", "If you look down, it ends."])
def test_last_paragraphs_that_are_no_remarks_stay(last):
    assert pairs(f"Q1: {WHY}\nA1: {SO}\n\n{last}", 1) == [(WHY, f"{SO}\n\n{last}")]


@pytest.mark.parametrize(
    "cut", ["It has two par", "The steps were:", "See (a)", "It is\n1.", "It is dense\n\nQ", "x\n\n**Question"]
)
def test_an_answer_that_was_cut_off_is_dropped(cut):
    found = parse_answer(f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {cut}", 2, FinishReason.LENGTH)
    assert ([(p["Q"], p["A"]) for p in found.pairs], found.status) == (TWO[:1], ParseStatus.TRUNCATED)


@pytest.mark.parametrize("mark", ["\n\nQ", "\n\n**Question", "\nQ2", "\n\n**"])
def test_the_beginning_of_a_marker_costs_no_pair(mark):
    found = parse_answer(f"Q1: {WHY}\nA1: {BECAUSE}{mark}", 2, FinishReason.LENGTH)
    assert [(p["Q"], p["A"]) for p in found.pairs] == TWO[:1]


@pytest.mark.parametrize(
    "text",
    [
        "Q1: a?\nA1: grades:\nQ3: good\nQ4: bad",
        "Q1: a?\nQ2: b?\nQ3: c?\nA1: d",
        "Q1: a?\nA1: in BASIC:\nEND IF\nmore",
        "Q3: a?\nA3: b.",
        "Q1: a?\nA1: b.\nQ2: c?\nQ3: d?",
    ],
)
def test_an_answer_that_lacks_pairs_has_no_end(text):
    assert answer_end(text, 2) is None


@pytest.mark.parametrize("head", ["\n\nQ3:", "\n**Question 3:**", "\nQ 3.", "\n### Question 3:", "\nQ3)"])
def test_forms_of_the_end(head):
    text = f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}"
    assert answer_end(text + head, 2) == (len(text) if head != "\nQ 3." else answer_end(text + head, 2))


@pytest.mark.parametrize(
    "text",
    [
        "It looks like the film is stable.",
        "The article is missing a control, so it fails.",
        "We do not have a gap here.",
    ],
)
def test_prose_that_is_no_refusal(text):
    assert no_pairs(text) == NoPairs.PROSE


@pytest.mark.parametrize(
    "text",
    ["I apologize, but no.", "No paper was provided.", "Sure! Please share it.", "很抱歉，我无法", "Q1: I'm sorry"],
)
def test_refusals(text):
    assert no_pairs(text) == NoPairs.REFUSED


@pytest.mark.parametrize(
    "piece", ["as an AI a", "**a?", "* q?\n", "Q1: ", "A1: ", "\n\n", '[{"', "</think>", "1. a?\nb\n", "Question vı:"]
)
def test_long_repetitions_are_read(piece):
    text = piece * (6_000 // len(piece))
    parse_answer(text, 3)
    no_pairs(text)
    answer_end(text, 3)


# JSON, in detail


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "[{'Q': 'It\\'s what?', 'A': 'say \"hi\"'}, {'Q': 'a?', 'A': 'b \\'c\\''}]",
            [("It's what?", 'say "hi"'), ("a?", "b 'c'")],
        ),
        ("{'Q': 'a?', 'A': ['one', 'it's two', 'three']}", [("a?", "one\nit's two\nthree")]),
        ("[['Why?', 'It's so.'], ['How?', 'So']]", [("Why?", "It's so."), ("How?", "So")]),
        ("{'Q': 'a, b?', 'A': 'c: d, e', 'n': 3}", [("a, b?", "c: d, e")]),
        ("{'Q': 'a?', \"A\": \"it's 'b', or\"}", [("a?", "it's 'b', or")]),
        ("[{'Q': 'a?', 'A': 3}, {'Q': 'b?', 'A': None}, {'Q': 'c?', 'A': True,}]", [("a?", "3"), ("c?", "Yes")]),
        ('{"Q": "a?", "A": """b\n"é" c"""}', [("a?", 'b\n"é" c')]),
        ('{"Q": "a?", "A": "b\\\\nu"}', [("a?", "b\\nu")]),
        ('[{"Q": "a?", "A": [null, "b", 2]}]', [("a?", "b\n2")]),
        ('[{"Q": "a?", "A": {"mass": 2, "note": null}}]', [("a?", "mass: 2\nnote:")]),
        ('[{"Q": "a?", "A": {"answer": "b", "source": "c"}}]', [("a?", "b")]),
    ],
)  # fmt: skip
def test_quotes_and_values(text, found):
    assert pairs(text) == found


@pytest.mark.parametrize("empty", ["null", '""', "[]", "{}"])
def test_an_empty_value_gives_way_to_another_key(empty):
    assert pairs(f'{{"question": {empty}, "prompt": "{WHY}", "answer": {empty}, "response": "{BECAUSE}"}}') == TWO[:1]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"instruction": "Write two", "output": objects()}, TWO),
        ({"Q1": "Write one", "A1": objects()[:1], "Q2": "And one", "A2": objects()[1:]}, TWO),
        ({"instruction": "Write two", "output": f"Q1: {WHY}\nA1: {BECAUSE}\nQ2: {HOW}\nA2: {SO}"}, TWO),
        ({"instruction": "Write", "output": f"Q1: {WHY}\nA1: {BECAUSE}"}, [("Write", f"Q1: {WHY}\nA1: {BECAUSE}")]),
        ({"instruction": "Write one", "output": json.dumps(objects()[:1])}, TWO[:1]),
        ({"text": json.dumps({"inner": json.dumps(objects())})}, TWO),
        ([{"question": WHY}, {"note": 1}, {"answer": BECAUSE}, {"answer": "lost"}], TWO[:1]),
        ([{"question": "lost?"}, *objects()[:1], {"answer": "lost"}], TWO[:1]),
        ([{"question": WHY}, 7, "x", {"answer": BECAUSE}], TWO[:1]),
        ({"questions": [WHY, HOW], "answers": [BECAUSE]}, []),
        ({"questions": [WHY], "answers": [BECAUSE]}, TWO[:1]),
        ({"questions": {"a": WHY, "b": HOW}, "answers": {"b": SO, "a": BECAUSE}}, TWO),
        ({"questions": [WHY, HOW], "answers": "Both"}, []),
        ({"Questions": [WHY, HOW], "ANSWERS": [BECAUSE, SO]}, TWO),
        ({WHY: BECAUSE, "note": "x"}, []),
        ({WHY: "", HOW: SO}, []),
        ([[WHY, BECAUSE, "x"]], []),
        ([["Why so", BECAUSE]], []),
        ({"k" * 90: WHY, "answer": BECAUSE}, []),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": WHY}, {"role": "tool", "content": "y"},
          {"role": "assistant", "content": BECAUSE}, {"role": "assistant", "content": "more"}], TWO[:1]),
        ([{"role": "user", "content": WHY}, {"role": "assistant"}], []),
    ],
)  # fmt: skip
def test_shapes(value, found):
    assert pairs(json.dumps(value)) == found


@pytest.mark.parametrize("speaker", ["role", "from", "speaker", "Author"])
@pytest.mark.parametrize("speech", ["content", "value", "text", "message"])
def test_dialogues(speaker, speech):
    for asks, tells in (
        ("user", "assistant"),
        ("Human", "GPT"),
        ("question", "answer"),
        ("Q", "A"),
        ("student", "expert"),
    ):
        turns = [{speaker: who, speech: text} for pair in TWO for who, text in zip((asks, tells), pair, strict=True)]
        assert pairs(json.dumps(turns)) == TWO


def test_the_requested_format_and_its_schema():
    assert answer_format(1) == "Q1: What …?\nA1: …"
    assert answer_format(2) == "Q1: What …?\nA1: …\n\nQ2: How …?\nA2: …"
    assert answer_format(7) == answer_format(2) + "\n\nand so on up to Q7 and A7."
    assert answer_format(3, structured=True) == 'a JSON list of 3 objects, one a pair: [{"Q": "…?", "A": "…"}, …]'
    schema = json_schema(2)
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid(objects())
    for wrong in (
        objects()[:1], [*objects(), *objects()], [{"Q": "a"}] * 2, [{"Q": "a", "A": ""}] * 2,
        [{"Q": "", "A": "b"}] * 2, [{"Q": "a", "A": 1}] * 2, [{"Q": "a", "A": "b", "C": "c"}] * 2, ["a"] * 2,
        {"Q": "a", "A": "b"},
    ):  # fmt: skip
        assert not valid(wrong)
    assert write_pairs([{"Q": "a", "A": "b"}, {"Q": "c", "A": "d"}]) == "Q1: a\nA1: b\n\nQ2: c\nA2: d"
    assert stop_strings(2) == ["\nQ3:", "\n**Q3:", "\nQuestion 3:", "\nEND\n", "\n**Question 3:"]


@pytest.mark.parametrize(
    "header",
    ["Question | Answer", "**Questions** | Answers", "Q | A", "question text | ANSWER TEXT", "Frage | Antwort"],
)
def test_headers_of_tables(header):
    table = f"{header}\n---|---\n{WHY} | {BECAUSE}\n\n{HOW} | a \\| b<br>c\nThe end | is here | now"
    assert pairs(table) == [TWO[0], (HOW, "a | b\nc")]


@pytest.mark.parametrize("header", ["Question | Question", "Topic | Answer"])
def test_other_tables_have_no_pairs(header):
    assert pairs(f"| {header} |\n| {WHY} | {BECAUSE} |") == []
