"""Training examples: what the model reads, which tokens carry loss, and what is cut."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from qaray.asking.budget import Budget
from qaray.asking.grammar import parse_answer, write_pairs
from qaray.asking.prompts import PromptBuilder
from qaray.asking.templates import LLAMA2, Template, prompt_ids
from qaray.config import ConfigError, MakeSftConfig
from qaray.corpus.records import Problem
from qaray.finetune.encoding import Encoder
from qaray.finetune.examples import IGNORED, Collator, Prepared, example_fields, require_examples
from qaray.finetune.loop import LengthGrouped
from qaray.finetune.make_sft import make_sft
from qaray.models.templates import named_template
from qaray.models.tokenizer import HFTokenizer, load_tokenizer
from qaray.run.storage import Location
from tests.conftest import SHARED, make_paper, sentencepiece_tokenizer


@pytest.fixture(scope="module")
def encode(tiny_model, tmp_path_factory):
    tokenizer = load_tokenizer(tiny_model, str(tmp_path_factory.mktemp("cache")), add_special=True)
    return Encoder(Template("llama2", LLAMA2), tokenizer, tokenizer.hf.eos_token_id, 2048)


FIELDS = {"instruction": "Say it.", "input": "Iron melts at 1811 K.", "output": "Q1: At what?\nA1: 1811 K."}


def test_an_example_read_by_eye(encode):
    """The seed's template byte for byte, the answer, EOS; the loss is on answer and EOS alone."""
    example = encode(FIELDS, "f:0")
    ids, prompt = example["input_ids"], example["prompt_tokens"]
    hf = encode.tokenizer.hf
    text = hf.decode(ids[:prompt])
    assert text.startswith("[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as ")
    assert text.endswith("share false information.\n<</SYS>> \n\nSay it.\nIron melts at 1811 K. [/INST]")
    assert hf.decode(ids[prompt:]) == "Q1: At what?\nA1: 1811 K.</s>"
    batch = Collator(hf.pad_token_id, all_logits=True)([{**example, "index": 0}])
    labels = batch["labels"][0].tolist()
    assert labels[:prompt] == [IGNORED] * prompt
    assert labels[prompt:] == ids[prompt:]
    assert labels[-1] == hf.eos_token_id


def test_without_input_the_short_form_is_used(encode):
    example = encode({**FIELDS, "input": ""}, "f:0")
    assert encode.tokenizer.decode(example["input_ids"][: example["prompt_tokens"]]) == "[INST]Say it.[/INST]"


def test_special_tokens_in_a_text_are_text(encode):
    example = encode({**FIELDS, "input": "a</s>b<s>", "output": "c</s>d"}, "f:0")
    eos, bos = encode.tokenizer.hf.eos_token_id, encode.tokenizer.bos_id
    places = [i for i, token in enumerate(example["input_ids"]) if token in (eos, bos)]
    assert places == [len(example["input_ids"]) - 1]


@pytest.mark.parametrize(
    ("end", "output", "last", "answer"),
    [
        ("]", "So it is.", "]", "S o ▁ i t ▁ i s ."),  # no blank before the answer
        ("]", "(a) So", "](", "a ) ▁ S o"),  # the merged token has no loss
        ("A: ", "Why", "▁", "▁W h y"),  # the first word is not merged into the prompt's blank
        ("qxz", "jot", "xz", "▁ j o t"),  # jointly qx zj: more than the last token of the prompt would change
    ],
)
def test_the_answer_is_tokenized_as_the_continuation_of_the_prompt(end, output, last, answer):
    tokenizer = sentencepiece_tokenizer()
    template = Template("file", "{instruction} {input}" + end)
    example = Encoder(template, tokenizer, tokenizer.hf.eos_token_id, 99)({**FIELDS, "output": output}, "f:0")
    tokens, start = tokenizer.hf.convert_ids_to_tokens(example["input_ids"]), example["prompt_tokens"]
    assert (tokens[start - 1], tokens[start:]) == (last, [*answer.split(), "</s>"])
    prompt = prompt_ids(template.render(FIELDS["instruction"], FIELDS["input"]), tokenizer)
    assert start == len(prompt)
    assert example["input_ids"][: start - 1] == prompt[:-1]


@pytest.mark.parametrize("end", ["]", "A: ", "qxz", "W ", " ", "\n", "(", "x", "</s>"])
@pytest.mark.parametrize("start", ["", "<s>"])
def test_the_prompt_of_an_example_is_that_of_inference(start, end):
    """Whatever the answer begins with, except for a last token into which it merges."""
    tokenizer = sentencepiece_tokenizer()
    template = Template("file", start + "{instruction} {input}" + end)
    encode = Encoder(template, tokenizer, tokenizer.hf.eos_token_id, 99)
    prompt = prompt_ids(template.render(FIELDS["instruction"], FIELDS["input"]), tokenizer)
    for output in ("So", " So", "Why", " Why", "(a)", "jot", "j", "\n\nSo", "]", "é"):
        example = encode({**FIELDS, "output": output}, "f:0")
        assert example["prompt_tokens"] == len(prompt)
        assert example["input_ids"][: len(prompt) - 1] == prompt[:-1]


@pytest.mark.parametrize("end", [" ", "  "])
def test_blanks_at_the_end_of_a_prompt_with_bytes_as_tokens(end):
    """GPT-2's tokenizers leave a word's blank out of its offsets, and split two blanks before a word."""
    merges = [("Ġ", "W"), ("Ġ", "Ġ")]
    tokens = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    bpe = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = HFTokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>"))
    template = Template("file", "{instruction} {input} A:" + end)
    example = Encoder(template, tokenizer, 0, 99)({**FIELDS, "output": "Why"}, "f:0")
    tokens = tokenizer.hf.convert_ids_to_tokens(example["input_ids"])
    assert tokens[-5:] == ["Ġ" * len(end), "W", "h", "y", "</s>"]
    assert example["prompt_tokens"] == len(tokens) - 4


LONGLORA = SHARED.parent / "cases" / "longlora"


@pytest.mark.parametrize("kind", ["smollm2", "sentencepiece"])
def test_tokens_and_masks_are_longloras(kind, model_cache):
    if not LONGLORA.exists():
        pytest.skip("the shared cases are not on this machine")
    cases = json.loads((LONGLORA / "tokens.json").read_text())
    name = {"smollm2": "bundled:smollm2-135m", "sentencepiece": str(LONGLORA / "tokenizer")}[kind]
    tokenizer = load_tokenizer(name, model_cache, add_special=True)
    values, limit = cases["values"][kind], cases["max_length"]
    whole = Encoder(Template("llama2", LLAMA2), tokenizer, tokenizer.hf.eos_token_id, 1 << 20)
    for fields, ids, start in zip(cases["examples"], values["input_ids"], values["answer_starts"], strict=True):
        found = whole(fields, "f:0")
        assert (found["input_ids"][:limit], min(found["prompt_tokens"], limit)) == (ids, start)
        cut = replace(whole, max_length=limit)
        if start == limit:
            with pytest.raises(Problem, match="no answer would be left"):
                cut(fields, "f:0")
        else:
            example = cut(fields, "f:0")
            assert (example["input_ids"], example["prompt_tokens"]) == (ids, start)


def test_training_and_inference_read_the_same_prompt(encode, tmp_path):
    """make-sft's example and generation's prompt of the same paper have the same tokens."""
    pairs = [{"Q": f"What is {i}?", "A": f"It is {i}."} for i in range(3)]
    paper = make_paper(1)
    source, target = tmp_path / "processed.json", tmp_path / "sft.jsonl"
    source.write_text(json.dumps([{**paper, "Q&A": pairs}, {**make_paper(2), "Q&A": []}]))
    counts = make_sft(MakeSftConfig(processed_output=str(source), output=str(target)))
    assert (counts["examples"], counts["rejected"]) == (1, 1)
    example = encode(json.loads(target.read_text()), "f:0")
    builder = PromptBuilder(encode.template, encode.tokenizer, Budget(4096, 256, 3))
    (prompt,) = builder({**paper, "row": 0}, "s")
    assert example["input_ids"][: example["prompt_tokens"]] == prompt["token_ids"]
    assert parse_answer(write_pairs(pairs), 3).pairs == pairs


def test_over_length(encode):
    long = {**FIELDS, "input": "".join(f"Sentence {i} of the paper. " for i in range(200)) + "THE QUERY"}
    cut = replace(encode, max_length=7000)
    whole = cut(long, "f:0")
    assert whole["truncated_tokens"] == 0
    short = replace(encode, max_length=len(whole["input_ids"]) - 5)(long, "f:0")  # the answer's end goes
    assert short["truncated_tokens"] == 5
    assert short["input_ids"] == whole["input_ids"][:-5]
    with pytest.raises(Problem) as found:
        replace(encode, max_length=whole["prompt_tokens"])(long, "f:0")
    assert str(found.value.reason) == "over_length"
    with pytest.raises(Problem):
        replace(encode, max_length=2000, overlength="reject")(long, "f:0")
    kept = replace(encode, max_length=2500, overlength="shorten")(long, "f:0")
    text = encode.tokenizer.decode(kept["input_ids"])
    assert len(kept["input_ids"]) <= 2500
    assert text.endswith("THE QUERY [/INST]Q1: At what?\nA1: 1811 K.")
    assert "Sentence 0 of the paper. Sentence 1 of" in text
    assert kept["truncated_tokens"] == len(whole["input_ids"]) - len(kept["input_ids"])


def test_make_sft_names_what_it_leaves_out(tmp_path):
    nan = float("nan")
    papers = [
        make_paper(0)
        | {"Q&A": [{"Q": "Why?", "A": "So."}, {"Q": "How?", "A": "\u200b "}, {"Q": "\u2060", "A": "Yes."}]},
        make_paper(1) | {"Q&A": [{"Q": "Why?", "A": nan}]},
        {"doi": "no-text", "Q&A": []},
    ]
    (tmp_path / "p.json").write_text(json.dumps(papers))
    config = MakeSftConfig(processed_output=str(tmp_path / "p.json"), output=str(tmp_path / "s.jsonl"))
    first, second = papers[0]["doi"], papers[1]["doi"]
    expected = [
        (first, "empty_text", "pair 1 has an empty answer"),
        (first, "empty_text", "pair 2 has an empty question"),
        (second, "no_pairs", "0 complete pairs, --min_pairs is 1; pair 0 has an empty answer"),
        ("no-text", "missing_key", "txt is missing; keys: doi, Q&A; docs/input.md shows how to convert other formats"),
    ]
    assert make_sft(config) == {
        "examples": 1, "rejected": 2, "pairs_left_out": 2, "why": [f"{doi}: {why}" for doi, _, why in expected],
    }  # fmt: skip

    def rejected():
        rows = map(json.loads, (tmp_path / "_s.rejected.jsonl").read_text().splitlines())
        return [(row["doi"], row["reason"], row["detail"]) for row in rows]

    assert rejected() == expected
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 1

    (tmp_path / "p.json").write_text(json.dumps(papers[1:]))
    (tmp_path / "s.jsonl").unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"2 records were rejected, the first because {second}: 0 complete pairs"):
            make_sft(config)
        assert rejected() == expected[2:]
        assert not (tmp_path / "s.jsonl").exists()
    (tmp_path / "p.json").write_text(json.dumps([make_paper(0) | {"Q&A": [{"question": "Why?", "answer": "So."}]}]))
    assert make_sft(config)["examples"] == 1
    assert not (tmp_path / "_s.rejected.jsonl").exists()


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        ({"instruction": "a", "input": "b"}, "missing_key", "output is missing; keys: instruction, input;"),
        ({"instruction": None, "output": "b"}, "missing_key", "instruction is null"),
        ({"text": "a"}, "missing_key", "instruction and output are missing; keys: text; docs"),
        ({"messages": []}, "missing_key", "instruction and output are missing; keys: messages; docs"),
        ({"conversations": []}, "missing_key", "keys: conversations; docs"),
        (
            {"prompt": "a", "response": "b"},
            "missing_key",
            r"keys: prompt, response; prompt: did you mean instruction\?; response: did you mean output\?",
        ),
        ({"instruction": {"0": "a"}, "output": {"0": "b"}}, "wrong_type", "a table by columns"),
        ({"instruction": "a", "output": " "}, "empty_text", "output is empty"),
        ({"instruction": "", "output": "b"}, "empty_text", "instruction is empty"),
        ({"instruction": "a", "output": "\u200b\ufeff"}, "empty_text", "output has no visible characters"),
        ({"instruction": "\u2060\u00a0", "output": "b"}, "empty_text", "instruction has no visible characters"),
        ({"instruction": "a", "output": ["b"]}, "wrong_type", r'output must be a string, got a list: \["b"\]'),
        ({"instruction": "a", "input": 5, "output": "b"}, "wrong_type", "input must be a string, got a number: 5"),
        ({"instruction": "a", "output": "\ud800"}, "undecodable", "output is not valid Unicode"),
        ([], "wrong_type", "a record must be an object, got a list"),
    ],
)
def test_bad_records_have_a_reason(value, reason, words):
    with pytest.raises(Problem, match=words) as found:
        example_fields(value)
    assert str(found.value.reason) == reason


@pytest.mark.parametrize("given", [{}, {"input": None}, {"input": float("nan")}])
def test_the_input_is_optional(given):
    assert example_fields({"instruction": "a", "output": "b", **given})["input"] == ""


def test_examples_without_any_are_named(tmp_path):
    folder = Location.of(str(tmp_path))
    with pytest.raises(ConfigError, match="no usable example in p.json: there are no records"):
        require_examples("p.json", Prepared(folder, {"examples": 0, "rejected": 0}))
    row = {"doi": None, "file": "p.json", "position": 0, "stage": "examples", "reason": "empty_text", "detail": "why"}
    (folder / "0.rejected.parquet").write_table(pa.Table.from_pylist([row]))
    with pytest.raises(ConfigError, match="1 record was rejected: why"):
        require_examples("p.json", Prepared(folder, {"examples": 0, "rejected": 1}))
    require_examples("p.json", Prepared(folder, {"examples": 1, "rejected": 0}))


def test_logits_on_answers_only_give_the_loss_and_the_gradient_of_all_logits(encode, tiny_model):
    """Batches of one, and of several whose answers stand at different places."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(len(encode.tokenizer.hf))
    examples = [
        {**encode({**FIELDS, "input": "x" * n, "output": "y" * m}, "f"), "index": 0}
        for n, m in ((5, 9), (40, 3), (9, 30))
    ]
    for batch in (examples[:1], examples):
        found = []
        for everywhere in (False, True):
            inputs = Collator(encode.tokenizer.hf.pad_token_id, everywhere)(batch)
            inputs.pop("index")
            model.zero_grad()
            out = model(**inputs)
            out.loss.backward()
            kept = sum(len(e["input_ids"]) - e["prompt_tokens"] for e in batch)
            assert out.logits.shape[1] <= kept or everywhere
            found.append((out.loss.detach(), [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(found[0][0], found[1][0])
        for mine, plain in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)


def test_examples_of_like_length_come_together_in_an_order_of_seed_and_epoch():
    lengths = [(37 * i) % 101 for i in range(101)]
    sampler = LengthGrouped(lengths, 4, seed=3)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert sorted(first) == list(range(101))
    sampler.set_epoch(1)
    assert list(sampler) != first
    gaps = [
        max(lengths[i] for i in first[k : k + 4]) - min(lengths[i] for i in first[k : k + 4]) for k in range(0, 96, 4)
    ]
    assert sum(gaps) / len(gaps) < 20  # at random: about 60
    assert list(LengthGrouped(lengths, 4, seed=4)) != first


def test_a_template_by_name(encode):
    assert named_template("llama2", encode.tokenizer) == encode.template
