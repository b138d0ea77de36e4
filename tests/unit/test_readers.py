"""Reading records: every ugly case costs its own record and no other."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qaray.config import ConfigError
from qaray.corpus.readers import stream
from qaray.corpus.readers.dispatch import SUFFIXES, data_files, read_records
from qaray.corpus.records import Problem, paper_fields
from qaray.run.globs import expand
from qaray.run.storage import Location
from qaray.schema import RejectReason
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
        ('[{"a": 1}]\n[{"a": 2}, {"a": 3}]\n{"a": 4}', [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]),
        ('{"a": 1}]', [{"a": 1}, "not_json"]),
        ("{'a': 1}", ["not_json"]),
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


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.jsonl", '[\n {"a": 1},\n {"a": 2}\n]\n', [{"a": 1}, {"a": 2}]),
        ("p.jsonl", '[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("p.ndjson", "[]", []),
        ("p.jsonl", '{\n "a": 1\n}\n{\n "a": 2\n}\n', [{"a": 1}, {"a": 2}]),
        ("p.jsonl", '{"a": \n{"a": 2}\n', ["not_json", {"a": 2}]),
        ("p.jsonl", '# made by hand\n{"a": 2}\n', ["not_json", {"a": 2}]),
        ("p.jsonl", '[INFO] started\n{"a": 2}\n', ["not_json", {"a": 2}]),
        ("p.json", '{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("p.txt", '{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("p.json", " " * 70_000 + '[{"a": 1}]', [{"a": 1}]),
        ("p.jsonl", '{"a": 1}\n\ufeff{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("p.json", '[{"a": 1}]\n\ufeff[{"a": 2}]', [{"a": 1}, {"a": 2}]),
    ],
)
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_json_is_read_as_it_is_whatever_the_ending(tmp_path, monkeypatch, name, content, expected, chunk):
    monkeypatch.setattr(stream, "CHUNK", chunk)
    assert outline(read(tmp_path, name, content)) == expected
    assert outline(read(tmp_path, name, content.replace("\n", "\r\n"))) == expected


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32"])
def test_unicode_encodings_are_read(tmp_path, monkeypatch, name, encoding):
    monkeypatch.setattr(stream, "CHUNK", 1003)  # within a character of two or four bytes
    papers = [make_paper(i, title="Überschuß α 𝛼") for i in range(20)]
    lines = "".join(json.dumps(paper, ensure_ascii=False) + "\n" for paper in papers)
    for text in (lines, json.dumps(papers, ensure_ascii=False, indent=1)):
        assert [r.value for r in read(tmp_path, name, text.encode(encoding))] == papers


def test_damaged_utf_16_is_named(tmp_path):
    content = '{"doi": "a"}\n'.encode("utf-16") + b"x"
    found = read(tmp_path, "p.jsonl", content)
    assert [r.problem and r.problem.detail for r in found][-1] == "the file is not UTF-16: truncated data"


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "txt", "words"),
    [
        ("latin-1", "It grew at 25 \u00b0C.", r"byte 0xb0 at character 14.* UTF-8; it may be in Latin-1"),
        ("gbk", "\u94c1 melts.", r"byte 0xcc at character 0.* it may be in GBK"),
    ],
)
def test_other_encodings_are_named_and_cost_their_records_only(tmp_path, name, encoding, txt, words):
    bad = json.dumps({"doi": "b", "txt": txt}, ensure_ascii=False).encode(encoding)
    ignored = json.dumps({"doi": "c", "txt": "t", "authors": txt}, ensure_ascii=False).encode(encoding)
    records = read(tmp_path, name, b"\n".join([b'{"doi": "a", "txt": "t"}', bad, ignored]))
    assert [r.value["doi"] for r in records] == ["a", "b", "c"]
    paper_fields(records[0].value)
    paper_fields(records[2].value)
    with pytest.raises(Problem, match=words) as error:
        paper_fields(records[1].value)
    assert error.value.reason is RejectReason.UNDECODABLE


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "t.csv",
            b"doi,txt\na,Some text.\n",
            "t.csv is a CSV table; .json, .jsonl, .ndjson and .parquet files are read",
        ),
        ("t.csv", b"10.1/a,Some text.\n", "is a CSV table"),
        ("t.txt", b"Iron melts.\n", "is plain text"),
        ("t.md", b"# Iron\n[1] Smith, J. (2001)\n", "is Markdown"),
        ("t.tex", b"{\\bf Iron}\n", "is LaTeX"),
        ("t.pdf", b"%PDF-1.7\n", "is a PDF"),
        ("t.xml", b"\xef\xbb\xbf<?xml version='1.0'?>", "is XML or HTML"),
        ("t.json", b"<html>", "is XML or HTML"),
        ("t.json", b"PAR1\x15\x04", "must end in .parquet"),
        ("t.json", gzip.compress(b"[]", mtime=0), "must end in .gz"),
        ("t.xlsx", b"PK\x03\x04\x14\x00", "is a ZIP archive"),
        ("t.jsonl", b"\0" * 100, "NUL bytes"),
        ("t.json", b"Iron melts at 1811 K.", 'is not JSON: it begins with "Iron melts at 1811 K."'),
        ("t", b"Iron\xff", "is not JSON: it begins with"),
    ],
)
def test_other_formats_are_named_in_one_record(tmp_path, name, content, words):
    (record,) = read(tmp_path, name, content)
    assert record.problem.reason is RejectReason.NOT_JSON
    assert words in record.problem.detail
    if not name.endswith(SUFFIXES):
        with pytest.raises(ConfigError, match="files are read"):
            data_files(str(tmp_path / name))


def test_only_a_file_of_another_format_is_refused_at_once(tmp_path):
    (tmp_path / "p.txt").write_text('[{"doi": "a"}]')
    (tmp_path / "p.csv").write_text("a,b")
    assert [f.name for f in data_files(str(tmp_path / "p.txt"))] == ["p.txt"]
    assert [f.name for f in data_files(str(tmp_path / "p.*"))] == ["p.csv", "p.txt"]


def test_undecodable_bytes_cost_their_record(tmp_path):
    good, bad = (
        json.dumps(make_paper(1)).encode(),
        json.dumps(make_paper(2)).encode().replace(b"melting", b"mel\xffing"),
    )
    found = read(tmp_path, "p.json", b"[" + good + b"," + bad + b"," + good + b"]")
    assert len(found) == 3
    paper_fields(found[0].value)
    paper_fields(found[2].value)
    with pytest.raises(Problem, match="byte 0xff at character 7") as error:
        paper_fields(found[1].value)
    assert error.value.reason is RejectReason.UNDECODABLE


def test_archives(tmp_path):
    text = json.dumps([make_paper(1, title="Überschuß α")], ensure_ascii=False)
    assert read(tmp_path, "p.json.gz", gzip.compress(text.encode()))[0].value["title"] == "Überschuß α"
    damaged = gzip.compress((text * 100).encode())[:60]
    assert outline(read(tmp_path, "q.json.gz", damaged))[-1] == "undecodable"


def test_parquet(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([make_paper(i) for i in range(3)]), path)
    assert [r.value for r in read_records(Location.of(str(path)))] == [make_paper(i) for i in range(3)]
    assert outline(read(tmp_path, "broken.parquet", b"PAR1 no")) == ["undecodable"]
    pq.write_table(pa.table({"DOI": ["10.1/a"], "txt": [b"t"], "Body": ["x"]}), path)
    (record,) = read_records(Location.of(str(path)))
    assert record.value == {"DOI": None, "Body": None, "txt": b"t"}  # only the names of columns that are not read
    with pytest.raises(Problem, match=r"doi is missing; keys: DOI, Body, txt; DOI: did you mean doi\?"):
        paper_fields(record.value)
    with pytest.raises(Problem, match="txt must be a string, got bytes"):
        paper_fields({**record.value, "doi": "a"})
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
    with pytest.raises(FileNotFoundError, match="in the folder .*it has no files"):
        names("empty")
    (tmp_path / "empty/t.csv").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"it has \.csv files, and \.json, \.jsonl, \.ndjson, \.parquet are read"
    ):
        names("empty")
