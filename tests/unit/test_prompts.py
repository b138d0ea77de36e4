"""Templates byte for byte, BOS once, budgets never exceeded, nothing of a paper lost without being counted."""

import itertools
import json
import re

import pytest
from tokenizers import processors

from qaray.asking.budget import Budget
from qaray.asking.grammar import answer_end
from qaray.asking.prompts import PromptBuilder
from qaray.asking.request import Request, default_request
from qaray.asking.templates import LLAMA2, Template, WordTokenizer, chat_template, prompt_ids
from qaray.config import ConfigError, GenerateConfig
from qaray.engines.choices import tokenised
from qaray.evaluate.rubrics import JudgePrompts
from qaray.finetune.encoding import Encoder
from qaray.models.templates import default_template, named_template
from qaray.models.tokenizer import HFTokenizer, load_tokenizer
from tests.conftest import ROOT, SHARED, make_paper, sentencepiece_tokenizer

SEED = SHARED.parent / "seed" / "seed_readme.md"


def builder(
    tokenizer, seq_len=600, overlength="truncate", num_qas=3, max_gen_len=200, template=None, request=None, **flags
):
    known = {"file_path": "-", "output_dir": "-", "engine": "echo"}
    asking = {"num_qas": num_qas, "max_gen_len": max_gen_len, "overlength": overlength}
    config = GenerateConfig(**{**known, **asking, **flags})
    return PromptBuilder.of(config, template or Template("llama2", LLAMA2), tokenizer, seq_len, request)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, "cache")


def test_the_template_is_the_seeds():
    if not SEED.exists():
        pytest.skip("the seed is not on this machine")
    text = SEED.read_text()
    start = text.index("[INST] <<SYS>>")
    assert text[start : text.index("[/INST]") + len("[/INST]")] == LLAMA2


def test_render_leaves_braces_in_papers_alone():
    template = Template("llama2", LLAMA2)
    rendered = template.render("do {input}", "a {instruction} {x} {{")
    assert rendered.endswith("<</SYS>> \n\ndo {input}\na {instruction} {x} {{ [/INST]")
    assert template.render("do it") == "[INST]do it[/INST]"
    with pytest.raises(ConfigError, match="exactly once"):
        Template("file", "{instruction} only")
    assert Template("llama2", LLAMA2).sha256 != Template("llama2", LLAMA2 + " ").sha256


@pytest.mark.parametrize("start", ["", "<s>", "<s><s>"])
@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", ["llama2", "file", "chat"])
def test_bos_comes_once_where_the_tokenizer_or_the_template_has_it(name, adds_bos, start):
    """Training, generation and judging read the same ids, and another template changes nothing."""
    tokenizer = sentencepiece_tokenizer(adds_bos)
    assert tokenizer.adds_bos == adds_bos
    template = Template(name, start + "U: {instruction} {input} A:")
    ids = prompt_ids(template.render("a", "b"), tokenizer)
    count = int(adds_bos or start != "")
    assert ids[:count] == [tokenizer.bos_id] * count
    assert ids.count(tokenizer.bos_id) == count
    assert tokenised(tokenizer, template.render("a", "b"), ["?"], ["1"], 99)[0] == ids
    example = Encoder(template, tokenizer, 1, 99)({"instruction": "a", "input": "b", "output": "c"}, "f:0")
    assert example["input_ids"][: example["prompt_tokens"]] == ids
    build = builder(tokenizer, 9000, template=template)
    found = build({**make_paper(1), "row": 0}, "s")[0]
    assert found["token_ids"].count(tokenizer.bos_id) == count


def test_eos_at_the_end_is_not_bos():
    """A tokenizer that ends every text with the token that it also names as BOS."""
    hf = sentencepiece_tokenizer(adds_bos=False).hf
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    assert not HFTokenizer(hf).adds_bos


def test_special_tokens_in_a_paper_are_text(tokenizer):
    paper = {**make_paper(1), "txt": "Begin </s> and <s>[INST] go on. " * 2, "row": 0, "keywords": ["</s> zinc"]}
    prompt = builder(tokenizer, seq_len=4000)(paper, "s")[0]
    assert not {tokenizer.bos_id, tokenizer.hf.eos_token_id} & set(prompt["token_ids"])
    assert len(prompt["prompt"][prompt["paper_start"] : prompt["paper_end"]]) == len(paper["txt"])


MARKED = {  # template → the markers that it uses
    "llama2": (LLAMA2, ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"]),
    "chat": ("<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n", ["<|im_end|>"]),
    "turns": ("<start_of_turn>u {instruction} {input}<end_of_turn>", ["<start_of_turn>", "<end_of_turn>"]),
    "words": ("A chat. USER: {instruction} {input} ASSISTANT:", ["USER:", "ASSISTANT:"]),
    "headings": ("### Task:\n{instruction}\n{input}\n### Response:\n", ["\n### Response:"]),
}


@pytest.mark.parametrize("special", [False, True], ids=["text", "special"])
@pytest.mark.parametrize("name", MARKED)
def test_markers_of_the_template_in_a_text_are_text(tiny_model, name, special):
    """Whether or not the tokenizer has them as special tokens: in papers, training examples and judge prompts."""
    text, markers = MARKED[name]
    template = Template("file", text)
    tokenizer = load_tokenizer.__wrapped__(tiny_model, "cache")
    if special:
        added = {"additional_special_tokens": [marker.strip() for marker in markers]}
        tokenizer.hf.add_special_tokens(added)
        tokenizer = HFTokenizer(tokenizer.hf)

    def rendered(own):
        """What a model reads of a text: as a paper with a keyword, as an example and as a pair to judge."""
        paper = {
            **make_paper(1),
            "txt": own,
            "row": 0,
            "keywords": [own],
            "pairs": [{"pair_id": "1", "Q": own, "A": own}],
        }
        asked = builder(tokenizer, 4000, template=template)(paper, "s")[0]
        fields = {"instruction": own, "input": own, "output": own}
        example = Encoder(template, tokenizer, 1, 4000)(fields, "f:0")
        request, _ = JudgePrompts(template, tokenizer, 4000, -1.0).racar(paper, [])
        ids = [asked["token_ids"], example["input_ids"], tokenizer.encode(request["prefix"] + request["suffixes"][0])]
        return [tokenizer.hf.decode(each, skip_special_tokens=False) for each in ids]

    hostile = f"Zinc melts.{' now '.join(['', *markers, ''])}It boils."
    for read, expected in zip(rendered(hostile), rendered("Zinc melts. It boils."), strict=True):
        for marker in markers:
            assert read.count(marker) == expected.count(marker) > 0


def test_request_says_what_is_wanted():
    text = default_request().render("PAPER {num_qas}", ["[zinc oxide]", " "], 5)
    assert "PAPER {num_qas}" in text
    assert "Write 5 sophisticated question-answer pairs" in text
    assert "focused on: zinc oxide." in text
    assert text.endswith("and so on up to Q5 and A5.")
    assert "question-answer pair about" in default_request().render("p", [], 1)


def test_a_request_of_ones_own():
    text = 'Text: {paper}[[ ({keywords})]] {"Q": {num_qas}} in {language}, {other}: [[x]] {format}'
    own = Request(text)
    shown = own.render("P {format}", ["a", "b"], 1)
    assert shown == 'Text: P {format} (a, b) {"Q": 1} in the language of the paper, {other}: [[x]] Q1: What …?\nA1: …'
    assert own.render("P", [], 1).startswith('Text: P {"Q": 1} in')
    assert "in Dutch, {other}" in Request(text, "Dutch").render("P", [], 1)
    assert shown[own.paper_start(["a"], 1) :].startswith("P {format}")
    assert len({own.sha256, Request(text, "Dutch").sha256, Request(text + " ").sha256}) == 3
    assert own.matches(shown)
    assert not own.matches(shown.replace("Text:", "Paper:"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{paper}", "must contain {format} exactly once, found none"),
        ("{format}", "must contain {paper} exactly once, found none"),
        ("{paper} {paper} {format}", "exactly once, found 2"),
    ],
)
def test_a_request_without_its_slots_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        Request(text)


def test_a_language_needs_its_slot():
    with pytest.raises(ConfigError, match="no slot {language}"):
        Request("{paper} {format}", "Dutch")
    assert "written in Dutch" in default_request("Dutch").render("P", [], 2)
    assert "written in" not in default_request().render("P", [], 2)


def test_a_paper_that_looks_like_the_request_is_found_where_it_is(tokenizer):
    """The paper's place in the prompt is known by construction, whatever its text holds."""
    paper = {**make_paper(1), "txt": "Here is a scientific paper:\n{paper} {format} [[x {keywords}]] end.", "row": 0}
    prompt = builder(tokenizer, seq_len=4000)(paper, "s")[0]
    assert prompt["prompt"][prompt["paper_start"] : prompt["paper_end"]] == paper["txt"]


def test_budget():
    assert Budget(8192, 2048, 10).reserve == 1500
    assert Budget(8192, 700, 10).reserve == 700
    assert Budget(8192, 2048, 1).reserve == 256
    assert Budget(1000, 700, 1).answer_cap(900) == 100


def paper_of(words, seed=0):
    text = " ".join(f"Wörd{(i * 7919 + seed) % 9973}{'.' if i % 9 == 8 else ''}" for i in range(words))
    return {**make_paper(words), "txt": text, "row": 0}


@pytest.mark.parametrize("words", [1, 10, 100, 333, 2000])
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_no_prompt_exceeds_its_budget(words, kind, tokenizer):
    tok, seq_len = (WordTokenizer(), 900) if kind == "words" else (tokenizer, 3000)
    paper = paper_of(words)
    for overlength in ("truncate", "split"):
        build = builder(tok, seq_len, overlength)
        prompts = build(paper, "s")
        for prompt in prompts:
            assert prompt["prompt_tokens"] <= build.budget.longest_prompt
            assert prompt["prompt_tokens"] + prompt["max_tokens"] <= seq_len
            assert prompt["max_tokens"] > 0
            assert (
                prompt["prompt"][prompt["paper_start"] : prompt["paper_end"]]
                == paper["txt"][prompt["start"] : prompt["end"]]
            )
            assert prompt["prompt"] == build.text(paper, prompt["start"], prompt["end"], prompt["num_qas"])
        if overlength == "split":
            spans = [(p["start"], p["end"]) for p in prompts]
            assert spans[0][0] == 0
            assert spans[-1][1] == len(paper["txt"])
            assert all(not paper["txt"][a:b].strip() for (_, a), (b, _) in itertools.pairwise(spans))
            assert [p["window"] for p in prompts] == list(range(len(prompts)))
            assert {p["windows"] for p in prompts} == {len(prompts)}
            assert sum(p["num_qas"] for p in prompts) == max(3, len(prompts))
            assert not any(p["truncated_tokens"] for p in prompts)
        else:
            kept = tok.count([paper["txt"][: prompts[0]["end"]]])[0]
            assert prompts[0]["truncated_tokens"] == tok.count([paper["txt"]])[0] - kept


def test_skip_gives_a_row_with_the_figures(tokenizer):
    build = builder(tokenizer, 3000, "skip")
    row = build(paper_of(2000), "s")[0]
    assert (row["reason"], row["detail"][:14]) == ("over_length", "the prompt has")
    assert (row["prompt"], row["token_ids"]) == ("", [])
    assert build(paper_of(10), "s")[0]["reason"] is None


def test_keywords_that_leave_no_room_are_an_error(tokenizer):
    paper = {**paper_of(2000), "keywords": ["keyword"] * 500}
    row = builder(tokenizer, 3000)(paper, "s")[0]
    assert (row["reason"], row["detail"][:14]) == ("over_length", "the keywords l")


def test_a_context_without_room_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="leaves no room for a paper"):
        builder(tokenizer, 1000)


def test_the_row_of_a_prompt(tokenizer):
    chat = chat_template("U: {instruction}\n{input} A:")
    paper = {**make_paper(1), "row": 5}
    found = builder(tokenizer, 4000, template=chat)(paper, "part-000002")[0]
    opening = chat.opening
    assert opening
    assert found["prompt"].endswith(f" A:{opening}")
    assert builder(tokenizer, 4000, template=chat).text(paper, 0, len(paper["txt"]), 3) + opening == found["prompt"]
    expected = {"doi": paper["doi"], "shard": "part-000002", "row": 5, "window": 0, "windows": 1, "attempt": 1}
    expected |= {"num_qas": 3, "start": 0, "end": len(paper["txt"]), "opening": opening, "truncated_tokens": 0}
    expected |= {"prompt_tokens": len(found["token_ids"]), "max_tokens": 200, "reason": None, "detail": None}
    assert {name: found[name] for name in expected} == expected
    assert set(found) == set(expected) | {"paper_start", "paper_end", "prompt", "token_ids"}


def test_tokens_include_bos():
    tokenizer = sentencepiece_tokenizer()
    found = builder(tokenizer, 4000)(paper_of(5), "s")[0]
    assert found["prompt_tokens"] == len(found["token_ids"]) == tokenizer.count([found["prompt"]])[0] + 1


def test_a_structured_request_of_ones_own_is_sent():
    own = Request("Write {num_qas}. {format} Text: {paper}")
    build = builder(WordTokenizer(), 4000, num_qas=12, request=own, engine="vllm", base_model="m", structured=True)
    paper = paper_of(20)
    found = build(paper, "s")[0]
    assert own.render(paper["txt"], paper["keywords"], 12, True) in found["prompt"]
    assert found["prompt"] == build.text(paper, 0, len(paper["txt"]), 12)
    assert found["prompt"][found["paper_start"] : found["paper_end"]] == paper["txt"]
    assert "JSON" in found["prompt"]


def plain(words, **fields):
    """A paper of so many tokens of one letter."""
    return {**make_paper(0), "txt": " ".join("b" * words), "keywords": [], "row": 0, **fields}


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_a_context_needs_room_for_64_tokens_of_a_paper(kind, tokenizer):
    tok = WordTokenizer() if kind == "words" else tokenizer
    with pytest.raises(ConfigError, match="seq_len 70 leaves no room for a paper") as error:
        builder(tok, 70)
    empty, reserve, least = map(int, re.search(r"(\d+) tokens, (\d+) are .* (\d+), or", str(error.value)).groups())
    assert (reserve, least) == (200, empty + 264)
    assert builder(tok, least)(plain(0), "s")[0]["prompt_tokens"] == empty
    with pytest.raises(ConfigError, match="leaves no room"):
        builder(tok, least - 1)


def test_the_longest_prompt_fits():
    build = builder(WordTokenizer(), overlength="skip")
    longest = build.budget.longest_prompt
    room = longest - build(plain(0), "s")[0]["prompt_tokens"]
    assert build(plain(room), "s")[0]["prompt_tokens"] == longest
    assert build(plain(room + 1), "s")[0]["detail"] == f"the prompt has {longest + 1} tokens, {longest} fit"
    assert builder(WordTokenizer())(plain(room + 5), "s")[0]["truncated_tokens"] == 5


def test_keywords_must_leave_16_tokens():
    build = builder(WordTokenizer())
    short = plain(0, keywords=["b"])
    room = build.budget.longest_prompt - build(short, "s")[0]["prompt_tokens"]
    fits, exceeds = ([" ".join("b" * (room - left + 1))] for left in (16, 15))
    found = build(plain(500, keywords=fits), "s")[0]
    assert (found["reason"], found["truncated_tokens"]) == (None, 500 - 16)
    assert build(plain(500, keywords=exceeds), "s")[0]["detail"] == "the keywords leave 15 tokens for the text"


class Merging(WordTokenizer):
    """Counts more tokens in a prompt than in the text alone, where a word and its marks are one."""

    def spans(self, text):
        return [match.span() for match in re.finditer(r"\S+", text)]


@pytest.mark.parametrize("marks", [1, 8])
def test_tokens_that_merge_only_in_the_text_are_counted_in_the_prompt(marks):
    build = builder(Merging())
    text = "b. " * marks + "b " * 800
    found = build(plain(0, txt=text), "s")[0]
    assert found["prompt_tokens"] == build.budget.longest_prompt
    assert (found["shard"], found["window"], found["windows"], found["start"]) == ("s", 0, 1, 0)
    assert found["truncated_tokens"] == len(text[found["end"] :].split())


def test_a_window_holds_at_least_one_token():
    build = builder(Merging())
    assert build(plain(0, txt="b " + "!" * 900 + " b"), "s")[0]["end"] == 1


def test_windows_are_added_until_the_whole_text_is_asked_about():
    """600 words are 1200 tokens in prompts: two windows of 428 tokens, which the words suggest, do not hold them."""
    build = builder(Merging(), 900, "split")
    text = f"  {'b. ' * 600}  "
    found = build(plain(0, txt=text), "s")
    assert [(row["shard"], row["window"], row["windows"]) for row in found] == [("s", 0, 3), ("s", 1, 3), ("s", 2, 3)]
    assert (found[0]["start"], found[-1]["end"]) == (0, len(text))
    assert " ".join(text[row["start"] : row["end"]] for row in found).split() == text.split()
    assert max(row["prompt_tokens"] for row in found) <= build.budget.longest_prompt


@pytest.mark.parametrize(("num_qas", "shares"), [(2, [1, 1]), (3, [2, 1]), (1, [1, 1])])
def test_windows_share_the_pairs(num_qas, shares):
    build = builder(WordTokenizer(), 900, "split", num_qas)
    room = build.budget.longest_prompt - build(plain(0), "s")[0]["prompt_tokens"]
    assert [row["num_qas"] for row in build(plain(room + 50), "s")] == shares


def test_a_paper_that_raises_becomes_a_row_with_the_failure():
    class Refusing(WordTokenizer):
        def count(self, texts):
            if any("boom" in text for text in texts):
                raise KeyError("boom")
            return super().count(texts)

    build = builder(Refusing())
    assert build.safely(plain(30), "s") == build(plain(30), "s")
    failed = build.safely(plain(0, txt="boom", keywords=["boom"], row=4), "s")
    named = ("doi", "shard", "row", "window", "windows", "num_qas", "start", "end", "prompt", "token_ids", "max_tokens")
    assert [[row[name] for name in named] for row in failed] == [["10.0/test.000000", "s", 4, 0, 1, 3, 0, 0, "", [], 0]]
    assert (failed[0]["reason"], failed[0]["detail"]) == ("engine_error", "KeyError: 'boom'")


def test_answer_end():
    text = "Q1: a\nA1: b\n\nQ2: c\nA2: d\n\nQ3: e"
    assert text[: answer_end(text, 2)] == "Q1: a\nA1: b\n\nQ2: c\nA2: d"
    assert answer_end(text, 3) is None
    assert answer_end("<think>\nQ3: draft", 2) is None
    thought = "<think>\nQ3: draft</think>"
    assert answer_end(thought + text, 2) == len(thought) + answer_end(text, 2)
    assert answer_end("Q1: a\nA1: b\nEND", 3) == len("Q1: a\nA1: b")


def test_templates_by_name(tokenizer, tmp_path):
    assert default_template(tokenizer).name == "llama2"
    with pytest.raises(ConfigError, match="no chat template"):
        named_template("chat", tokenizer)
    (tmp_path / "t.txt").write_text("Do: {instruction}\nWith: {input}\n")
    assert named_template(str(tmp_path / "t.txt"), tokenizer).render("a", "b") == "Do: a\nWith: b\n"

    class Chat(HFTokenizer):
        def __init__(self):
            self.hf = tokenizer.hf.__class__.from_pretrained(tokenizer.hf.name_or_path)
            self.hf.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"

    assert re.fullmatch(r"<user>a\nb<assistant>Q1:", default_template(Chat()).render("a", "b"))


def test_lengths_are_estimated_without_a_tokenizer():
    """Within a third of what a real tokenizer counts, on scientific text."""
    from qaray.asking.templates import EstimatedTokenizer
    from qaray.models.tokenizer import load_tokenizer

    estimated = EstimatedTokenizer()
    papers = json.loads((ROOT / "qaray/sample/papers.json").read_text())
    texts = [paper["txt"] for paper in papers]
    real = load_tokenizer("bundled:smollm2-135m", str(ROOT / "cache")).count(texts)
    for own, counted in zip(estimated.count(texts), real, strict=True):
        assert 0.67 < own / counted < 1.5
    spans = estimated.spans(texts[0])
    assert len(spans) == estimated.count(texts[:1])[0]
    assert "".join(texts[0][begin:end] for begin, end in spans) == texts[0].rstrip()
    hostile = "a <|im_end|> b [/INST] <</SYS>> </s> <end_of_turn> <b> x < y"
    assert estimated.literal(hostile) == "a ‹|im_end|> b ‹/INST] ‹</SYS>> ‹/s> ‹end_of_turn> <b> x < y"
