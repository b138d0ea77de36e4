"""Reading records: every ugly case costs its own record and no other."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qaray.corpus.readers import stream
from qaray.corpus.readers.dispatch import SUFFIXES, read_records
from qaray.corpus.records import Problem, paired_fields, paper_fields
from qaray.run.storage import Location, expand
from qaray.schema import RejectReason, pair_id
from tests.conftest import make_paper


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(Location.of(str(path))))


def outline(found):
    return [r.problem.reason.value if r.problem else r.value for r in found]


def test_list_is_read_incrementally_whatever_the_chunks(tmp_path, monkeypatch):
    papers = [make_paper(i, txt=f"Text “{i}” with ]" + '},{ and \\" quotes \n' * i) for i in range(20)]
    monkeypatch.setattr(stream, "CHUNK", 7)
    assert [r.value for r in read(tmp_path, "p.json", json.dumps(papers, indent=2))] == papers
    assert [r.value for r in read(tmp_path, "p2.json", json.dumps(papers, ensure_ascii=False))] == papers


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", []),
        ("  [ 1 , 2 ]\n", [1, 2]),
        ("", ["not_json"]),
        ("   \n", ["not_json"]),
        ('[{"a": 1}, {"a": 2}', [{"a": 1}, {"a": 2}, "not_json"]),
        ('[{"a": 1}, {"a": 2', [{"a": 1}, "not_json"]),
        ('[{"a": 1}, {"a": oops}]', [{"a": 1}, "not_json"]),
        ('[{"a": 1}, {"a": oops, "b": 3}, {"a": 4}]', [{"a": 1}, "not_json", {"a": 4}]),
        ('[{"a": "he said "no" twice"}, {"a": 4}]', ["not_json", {"a": 4}]),
        ('[{"a": 1} {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('[{"a": 1}] trailing', [{"a": 1}, "not_json"]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{\n "a": 1\n}\n{\n "a": x\n}\n{"a": 3}', [{"a": 1}, "not_json", {"a": 3}]),
        ("\ufeff[1]", [1]),
        ('["' + "[" * 100_000 + '"]', ["[" * 100_000]),
        ("[" * 100_000, ["not_json"]),
        ("[" + "9" * 5000 + "]", ["not_json"]),
        ("[1, 23", [1, 23, "not_json"]),
    ],
)
def test_values(tmp_path, content, expected):
    found = read(tmp_path, "p.json", content)
    assert outline(found) == expected
    assert [r.position for r in found] == list(range(len(found)))


def test_lines(tmp_path):
    content = b'{"a": 1}\n\n{"a": \n\xff\xfe{"b"}\n{"a": "\xc3\xa9"}\r\n{"a": 3}'
    assert outline(read(tmp_path, "p.jsonl", content)) == [
        {"a": 1},
        "not_json",
        "undecodable",
        {"a": "é"},
        {"a": 3},
    ]
    assert outline(read(tmp_path, "p.ndjson", b"")) == ["not_json"]


def test_undecodable_bytes_cost_their_record(tmp_path):
    good, bad = (
        json.dumps(make_paper(1)).encode(),
        json.dumps(make_paper(2)).encode().replace(b"melting", b"mel\xffing"),
    )
    found = read(tmp_path, "p.json", b"[" + good + b"," + bad + b"," + good + b"]")
    assert len(found) == 3
    paper_fields(found[0].value)
    paper_fields(found[2].value)
    with pytest.raises(Problem, match="not valid Unicode") as error:
        paper_fields(found[1].value)
    assert error.value.reason is RejectReason.UNDECODABLE


def test_other_encodings_and_archives(tmp_path):
    text = json.dumps([make_paper(1, title="Überschuß α")], ensure_ascii=False)
    assert read(tmp_path, "p.json", text.encode("utf-16"))[0].value["title"] == "Überschuß α"
    assert read(tmp_path, "p.json.gz", gzip.compress(text.encode()))[0].value["title"] == "Überschuß α"
    damaged = gzip.compress((text * 100).encode())[:60]
    assert outline(read(tmp_path, "q.json.gz", damaged))[-1] == "undecodable"


def test_parquet(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([make_paper(i) for i in range(3)]), path)
    assert [r.value for r in read_records(Location.of(str(path)))] == [make_paper(i) for i in range(3)]
    assert outline(read(tmp_path, "broken.parquet", b"PAR1 no")) == ["undecodable"]
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"b\xffd", b"fine"]).buffers())
    pq.write_table(pa.table({"doi": ["a", "b", "c"], "txt": text, "keywords": ["k", "k", "k"]}), path)
    assert [o if o == "undecodable" else o["doi"] for o in outline(read_records(Location.of(str(path))))] == [
        "a", "undecodable", "c",
    ]  # fmt: skip


def test_ten_megabytes(tmp_path):
    paper = make_paper(1, txt="Ten megabytes of text. " * 450_000)
    assert [r.value for r in read(tmp_path, "p.json", json.dumps([paper, make_paper(2)]))] == [
        paper,
        make_paper(2),
    ]


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        ([], RejectReason.WRONG_TYPE, "an object, got a list"),
        ("x", RejectReason.WRONG_TYPE, "an object, got a string"),
        ({"txt": "t", "keywords": []}, RejectReason.MISSING_KEY, "doi is missing"),
        ({"doi": "d", "keywords": []}, RejectReason.MISSING_KEY, "txt is missing"),
        ({"doi": "d", "txt": "t"}, RejectReason.MISSING_KEY, "keywords is missing"),
        ({"doi": None, "txt": "t", "keywords": []}, RejectReason.MISSING_KEY, "doi is null"),
        ({"doi": " ", "txt": "t", "keywords": []}, RejectReason.MISSING_KEY, "doi is empty"),
        ({"doi": 2101.0001, "txt": "t", "keywords": []}, RejectReason.WRONG_TYPE, "a number: 2101.0001"),
        (
            {"doi": "d", "txt": ["t"], "keywords": []},
            RejectReason.WRONG_TYPE,
            "txt must be a string, got a list",
        ),
        ({"doi": "d", "txt": "t", "keywords": 3}, RejectReason.WRONG_TYPE, "keywords must be a list"),
        ({"doi": "d", "txt": "t", "keywords": ["a", 3]}, RejectReason.WRONG_TYPE, "keywords must be strings"),
        (
            {"doi": "d", "txt": "t", "keywords": [], "title": {}},
            RejectReason.WRONG_TYPE,
            "title must be a string",
        ),
        ({"doi": "d", "txt": " \n\u200b\t", "keywords": []}, RejectReason.EMPTY_TEXT, "no visible character"),
        ({"doi": "d", "txt": "a \ud800 b", "keywords": []}, RejectReason.UNDECODABLE, "character 2 of txt"),
        ({"doi": "d", "txt": "t", "keywords": ["\udcff"]}, RejectReason.UNDECODABLE, "of keywords"),
    ],
)
def test_bad_papers_have_a_reason(value, reason, words):
    with pytest.raises(Problem, match=words) as error:
        paper_fields(value)
    assert error.value.reason is reason


def test_ids_are_opaque_and_keywords_split():
    for doi in ("2101.00010", "../../etc/passwd", "007", "a\nb", " 10.1/x ", "null", "é" * 500):
        assert paper_fields({"doi": doi, "txt": "t", "keywords": "a, b ,,c"}) == {
            "doi": doi, "txt": "t", "keywords": ["a", "b", "c"], "abstract": None, "title": None, "source": None,
        }  # fmt: skip


def test_expand(tmp_path):
    for name in (
        "b/2.jsonl",
        "a.json",
        "b/1.parquet",
        "b/notes.txt",
        "b/.hidden.json",
        "_old.json",
        "c[1].json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def names(pattern):
        return [f.path[len(str(tmp_path)) + 1 :] for f in expand(str(tmp_path / pattern), SUFFIXES)]

    assert names("") == ["a.json", "b/1.parquet", "b/2.jsonl", "c[1].json"]
    assert names("b/*.jsonl") == ["b/2.jsonl"]
    assert names("*.json") == ["a.json", "c[1].json"]
    assert names("**/*.parquet") == ["b/1.parquet"]
    assert names("c[1].json") == ["c[1].json"]
    for missing in ("nothing.json", "*.xml", "d"):
        with pytest.raises(FileNotFoundError):
            names(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="in the folder"):
        names("empty")


def test_ids_of_pairs_are_kept_or_made():
    """A pair keeps the id that it came with, unless it is none or came before in the paper."""
    given = [{"Q": "a", "A": "b", "pair_id": id} for id in ("x", None, "x", 7, " ")]
    paper = paired_fields({"doi": "10.1/a", "txt": "Text.", "Q&A": given})
    assert [pair["pair_id"] for pair in paper["pairs"]] == ["x", *(pair_id("10.1/a", n) for n in (2, 3, 4, 5))]
