"""What a record must have: its fields, or the reason and the sentence of its rejection."""

import json

import pytest

from qaray.corpus.explain import Unreadable, beginning
from qaray.corpus.records import MAX_OPTIONAL, Problem, has_visible, paired_fields, paper_fields
from qaray.schema import RejectReason, pair_id


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        ([], RejectReason.WRONG_TYPE, "an object, got a list"),
        ("x", RejectReason.WRONG_TYPE, "an object, got a string"),
        ({"txt": "t", "keywords": []}, RejectReason.MISSING_KEY, "doi is missing; keys: txt, keywords;"),
        ({"doi": "d", "keywords": []}, RejectReason.MISSING_KEY, "txt is missing"),
        ({}, RejectReason.MISSING_KEY, "doi and txt are missing; keys: none"),
        ({"doi": None, "txt": "t"}, RejectReason.MISSING_KEY, "doi is null$"),
        ({"doi": "d", "txt": float("nan")}, RejectReason.MISSING_KEY, "txt is null$"),
        ({"doi": None}, RejectReason.MISSING_KEY, "txt is missing and doi is null"),
        ({"doi": " ", "txt": "t"}, RejectReason.MISSING_KEY, "doi is empty"),
        ({"doi": "https://doi.org/", "txt": "t"}, RejectReason.MISSING_KEY, "doi is empty: 'https://doi.org/'"),
        (
            {"doi": 2101.0001, "txt": "t"},
            RejectReason.WRONG_TYPE,
            "doi must be a string, got a number: 2101.0001; write it in quotes: a number loses its zeros",
        ),
        ({"doi": 7, "txt": "t"}, RejectReason.WRONG_TYPE, "got a number: 7; write it in quotes"),
        ({"doi": True, "txt": "t"}, RejectReason.WRONG_TYPE, "doi must be a string, got a boolean: true$"),
        ({"doi": "d", "txt": ["a", "b"]}, RejectReason.WRONG_TYPE, r'txt must be a string, got a list: \["a", "b"\]'),
        ({"doi": "d", "txt": {"s": "x"}}, RejectReason.WRONG_TYPE, "txt must be a string, got an object"),
        ({"doi": "d", "txt": " \n\u200b\t"}, RejectReason.EMPTY_TEXT, "no visible character"),
        ({"doi": "d", "txt": "a \ud800 b"}, RejectReason.UNDECODABLE, "character 2 of txt is not valid Unicode"),
        ({"doi": "d", "txt": "t", "keywords": ["\udcff"]}, RejectReason.UNDECODABLE, "keywords is not UTF-8"),
        ({"doi": "d", "txt": "t", "title": "\udcff"}, RejectReason.UNDECODABLE, "title is not UTF-8"),
    ],
)
def test_bad_papers_have_a_reason(value, reason, words):
    with pytest.raises(Problem, match=words) as error:
        paper_fields(value)
    assert error.value.reason is reason


@pytest.mark.parametrize(
    "text", ["", " \n\t", "\u200b\ufeff\u00ad\u2060", "\u00a0\u2003", "\0\x1b\x7f", "\u3164\ufe0f\u2800"]
)
def test_a_text_without_a_mark(text):
    """Blanks, format and control characters, fillers and selectors, but not what stands between them."""
    assert not has_visible(text)
    assert all(has_visible(text + mark + text) for mark in ("a", ".", "鐵", "☃", "\ufffd"))


@pytest.mark.parametrize(
    ("keys", "hints"),
    [
        (["DOI", "TXT"], ["DOI: did you mean doi?", "TXT: did you mean txt?"]),
        (["doi", "full_text"], ["full_text: did you mean txt?"]),
        (["paper_id", "body_text"], ["paper_id: did you mean doi?", "body_text: did you mean txt?"]),
        (["PMID", "Full Text"], ["PMID: did you mean doi?", "Full Text: did you mean txt?"]),
        (["arxiv-id", "sections", "id"], ["id: did you mean doi?", "sections: did you mean txt?"]),
        (["\ufeffdoi", "txt "], ['"\ufeffdoi": did you mean doi?', '"txt ": did you mean txt?']),
        (["dio", "txxt"], ["dio: did you mean doi?", "txxt: did you mean txt?"]),
        (["title", "year"], []),
        (["title", "abstract", "source", "keywords"], []),
    ],
)
def test_the_nearest_name_of_a_missing_key(keys, hints):
    with pytest.raises(Problem) as error:
        paper_fields(dict.fromkeys(keys, "x"))
    found = [part for part in error.value.detail.split("; ") if "did you mean" in part]
    assert found == [hint.strip() for hint in hints]
    shown = error.value.detail.split("keys: ")[1].split("; ")[0]
    assert all(key.strip("\ufeff ") in shown for key in keys)


def test_messages_are_short_whatever_the_record():
    huge = {f"key {i} " + "x" * 1000: "v" for i in range(1000)}
    deep = json.loads("[" * 900 + "]" * 900)
    for value in (huge, {"doi": "y" * 10**6, "txt": {"x" * 10**6: 1}}, {"doi": "d", "txt": deep}, "x\n" * 10**6):
        with pytest.raises(Problem) as error:
            paper_fields(value)
        assert len(error.value.detail) < 1200
        assert "\n" not in error.value.detail
    with pytest.raises(Problem) as error:
        paper_fields({"doi": "d", "txt": ["\ud800"], "\ud800": 1})
    error.value.detail.encode()
    (flaw,) = paper_fields({"doi": "d", "txt": "t", "title": ["\ud800"]})["left_out"]
    assert flaw["detail"] == 'title: got a list: ["?"]'
    assert beginning(10**5000).endswith("…")
    assert beginning("x" * 81) == '"' + "x" * 80 + "…"
    assert beginning([1, {"a": None}]) == '[1, {"a": null}]'


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"doi": {"0": "a", "1": "b"}, "txt": {"0": "t", "1": "u"}},
            r"a table by columns \(doi, txt\).*orient='records'",
        ),
        ({"doi": ["a", "b"], "txt": ["t", "u"], "year": [1, 2]}, r"a table by columns \(doi, txt, year\), each a list"),
        ({"columns": ["doi", "txt"], "index": [0], "data": [["a", "t"]]}, "orient='split'"),
        ({"0": {"doi": "a", "txt": "t"}, "1": {"doi": "b", "txt": "u"}}, "values of one object, under the keys 0, 1;"),
        ({"10.1/a": {"txt": "t"}, "10.1/b": {"txt": "u"}}, "values of one object, under the keys 10.1/a, 10.1/b"),
        (
            {"data": [{"doi": "a", "txt": "t"}], "total": 1},
            "is under the key data: pass the list itself.*jq '.data' FILE",
        ),
        ({"n": 1, "corpus": [{"doi": "a", "txt": "t"}]}, "under the key corpus"),
        ({"response": {"docs": [{"id": "a"}]}}, "under the key response.docs"),
    ],
)
def test_a_file_in_another_layout_is_named(value, words):
    with pytest.raises(Problem, match=words) as error:
        paper_fields(value)
    assert error.value.reason is RejectReason.WRONG_TYPE


@pytest.mark.parametrize(
    "value",
    [
        {"paper_id": "a", "metadata": {"authors": [{"last": "x"}]}, "body_text": [{"text": "t"}]},
        {"doi": "a", "results": [{"text": "t"}]},
        {"metadata": {"title": "x"}, "content": {"text": "t"}},
    ],
)
def test_a_record_of_another_corpus_is_no_container(value):
    with pytest.raises(Problem, match="missing; keys: ") as error:
        paper_fields(value)
    assert error.value.reason is RejectReason.MISSING_KEY


def test_ids_are_opaque():
    for doi in ("2101.00010", "../../etc/passwd", "007", "a\nb", " 10.1/x ", "null", "é" * 500):
        assert paper_fields({"doi": doi, "txt": "t", "keywords": "a, b ,,c"}) == {
            "doi": doi, "txt": "t", "keywords": ["a", "b", "c"], "abstract": None, "title": None, "source": None,
            "left_out": [],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("iron; steel; rust", ["iron", "steel", "rust"]),
        ("iron, wrought; steel", ["iron, wrought", "steel"]),
        ("iron, steel,rust", ["iron", "steel", "rust"]),
        ("1,2-dichloroethane, heat", ["1,2-dichloroethane", "heat"]),
        ("铁；钢", ["铁", "钢"]),
        ("铁，钢、锈", ["铁", "钢", "锈"]),
        ("&alpha;-iron; steel", ["&alpha;-iron", "steel"]),
        ("iron;", ["iron"]),
        ("&alpha;-iron, steel", ["&alpha;-iron", "steel"]),
        ("iron", ["iron"]),
        (";", []),
        (" ", []),
        ("", []),
        (None, []),
        ([], []),
        ([" iron ", "", "cast iron, grey"], ["iron", "cast iron, grey"]),
    ],
)
def test_keywords(given, expected):
    fields = paper_fields({"doi": "d", "txt": "t", "keywords": given})
    assert (fields["keywords"], fields["left_out"]) == (expected, [])
    assert paper_fields({"doi": "d", "txt": "t"})["keywords"] == []


@pytest.mark.parametrize(
    ("given", "what", "detail"),
    [
        ({"title": ["T"]}, "title was not a string", 'title: got a list: ["T"]'),
        ({"source": 5}, "source was not a string", "source: got a number: 5"),
        ({"title": float("nan")}, "title was not a string", "title: got a number: NaN"),
        ({"source": float("-inf")}, "source was not a string", "source: got a number: -Infinity"),
        ({"keywords": float("nan")}, "keywords was not a string or a list of strings", "keywords: got a number: NaN"),
        (
            {"abstract": Unreadable("date64[ms]")},
            "abstract was not a string",
            "abstract: got a value that cannot be read, of type date64[ms]",
        ),
        ({"title": "x" * (MAX_OPTIONAL + 1)}, "title was too long", "title: longer than 1,048,576 characters"),
        ({"keywords": ";" * (MAX_OPTIONAL + 1)}, "keywords was too long", "keywords: longer than 1,048,576 characters"),
        (
            {"keywords": ["x" * MAX_OPTIONAL, "y"]},
            "keywords was too long",
            "keywords: longer than 1,048,576 characters",
        ),
        ({"abstract": {"text": "x"}}, "abstract was not a string", 'abstract: got an object: {"text": "x"}'),
        ({"keywords": 3}, "keywords was not a string or a list of strings", "keywords: got a number: 3"),
        ({"keywords": {"a": 1}}, "keywords was not a string or a list of strings", 'keywords: got an object: {"a": 1}'),
        ({"Keywords": ["a"]}, "keywords is written Keywords", "keywords is written Keywords"),
        ({"title ": "T"}, 'title is written "title "', 'title is written "title "'),
    ],
)
def test_a_wrong_optional_field_is_left_out_with_a_note(given, what, detail):
    fields = paper_fields({"doi": "d", "txt": "t", **given})
    assert fields["left_out"] == [{"what": what, "detail": detail}]
    empty = {"title": None, "source": None, "abstract": None, "keywords": []}
    assert {name: fields[name] for name in empty} == empty
    assert not paper_fields({"doi": "d", "txt": "t", "title": "x" * MAX_OPTIONAL, "source": None})["left_out"]


@pytest.mark.parametrize(
    ("given", "kept", "detail"),
    [
        ([" iron ", None], ["iron"], "keywords: 1 of 2 items, got null: null"),
        (["iron", float("nan"), "", "steel", 3], ["iron", "steel"], "keywords: 2 of 5 items, got a number: NaN"),
        ([["iron"]], [], 'keywords: 1 of 1 items, got a list: ["iron"]'),
    ],
)
def test_a_keyword_that_is_no_string_costs_itself_only(given, kept, detail):
    fields = paper_fields({"doi": "d", "txt": "t", "keywords": given})
    assert fields["keywords"] == kept
    assert fields["left_out"] == [{"what": "keywords had items that were no strings", "detail": detail}]


def test_ids_of_pairs_are_kept_or_made():
    """A pair keeps the id that it came with, unless it is none or came before in the paper."""
    given = [{"Q": "a", "A": "b", "pair_id": id} for id in ("x", None, "x", 7, " ")]
    paper = paired_fields({"doi": "10.1/a", "txt": "Text.", "Q&A": given})
    assert [pair["pair_id"] for pair in paper["pairs"]] == ["x", *(pair_id("10.1/a", n) for n in (2, 3, 4, 5))]


@pytest.mark.parametrize(
    "pair",
    [
        {"Q": "Why?", "A": "So."},
        {"q": "Why?", "a": "So."},
        {"question": "Why?", "answer": "So."},
        {"Answer": "So.", "Question ": "Why?", "type": "why"},
        {"query": "Why?", "response": "So."},
        {"instruction": "Why?", "output": "So."},
        {"input": "Why?", "output": "So."},
        {"prompt": "Why?", "completion": "So."},
        {"question": "Why?", "input": "a text", "answer": "So.", "output": "raw"},
    ],
)
def test_other_names_of_question_and_answer(pair):
    (found,) = paired_fields({"doi": "d", "txt": "t", "Q&A": [pair]})["pairs"]
    assert (found["Q"], found["A"]) == ("Why?", "So.")


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        ({}, RejectReason.MISSING_KEY, "Q&A is missing; keys: doi, txt; docs/input.md"),
        (
            {"qa_pairs": []},
            RejectReason.MISSING_KEY,
            r"Q&A is missing; keys: doi, txt, qa_pairs; qa_pairs: did you mean Q&A\?",
        ),
        ({"Q&A": None}, RejectReason.MISSING_KEY, "Q&A is null"),
        ({"Q&A": "Q1: Why?"}, RejectReason.WRONG_TYPE, 'Q&A must be a list, got a string: "Q1: Why'),
        ({"Q&A": ["x"]}, RejectReason.WRONG_TYPE, 'pair 0 must be an object, got a string: "x"'),
        ({"Q&A": [{"Q": "a"}, {}]}, RejectReason.MISSING_KEY, "pair 1 has no question and answer; keys: none"),
        (
            {"Q&A": [{"frage": "a", "antwort": "b"}]},
            RejectReason.MISSING_KEY,
            "no question and answer; keys: frage, antwort",
        ),
        ({"Q&A": [{"Q": "a", "reason": "b"}]}, RejectReason.MISSING_KEY, "pair 0 has no answer; keys: Q, reason"),
        ({"Q&A": [{"A": "a", "ask": "b"}]}, RejectReason.MISSING_KEY, "pair 0 has no question; keys: A, ask"),
        ({"Q&A": [{"Q": "a", "A": 3}]}, RejectReason.WRONG_TYPE, "A of pair 0 must be a string, got a number: 3"),
        ({"Q&A": [{"question": ["a"], "A": "b"}]}, RejectReason.WRONG_TYPE, "question of pair 0 .* got a list"),
        ({"Q&A": [{"Q": "a", "A": "\udcff"}]}, RejectReason.UNDECODABLE, "A of pair 0 is not UTF-8"),
    ],
)
def test_bad_pairs_have_a_reason(value, reason, words):
    with pytest.raises(Problem, match=words) as error:
        paired_fields({"doi": "d", "txt": "t", **value})
    assert error.value.reason is reason


@pytest.mark.parametrize("pair", [{"Q": "a"}, {"Q": "a", "A": None}, {"Q": "a", "A": float("nan"), "pair_id": "x"}])
def test_a_null_answer_is_an_empty_text(pair):
    (found,) = paired_fields({"doi": "d", "txt": "t", "Q&A": [pair]})["pairs"]
    assert (found["Q"], found["A"]) == ("a", "")
