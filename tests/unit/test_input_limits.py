"""Limits of an input: what a record may be, and what is held and visited while one that is too long is skipped."""

import bz2
import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qaray.corpus.doi import MAX_PREFIXES, doi_key
from qaray.corpus.readers import limits, stream
from qaray.corpus.readers.dispatch import read_records
from qaray.corpus.records import FIELDS, Problem, paper_fields
from qaray.run.storage import COMPRESSION, Location

GOOD = {"doi": "10.1/a", "txt": "Tin melts at 505 K."}


def read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(Location.of(str(tmp_path / name))))


def outline(records):
    return [str(r.problem.reason) if r.problem else r.value for r in records]


@pytest.fixture
def small(monkeypatch):
    """Limits at which a few thousand characters are a long record."""
    monkeypatch.setattr(limits, "MAX_RECORD", 4000)
    monkeypatch.setattr(limits, "MAX_VALUES", 100)
    monkeypatch.setattr(limits, "UNCHECKED", 500)
    monkeypatch.setattr(stream, "CHUNK", 64)


LONG = {
    "a text": {"txt": "x" * 9000},
    "quotes and brackets in a text": {"txt": '"}, {"doi": "b", "txt": [{' * 400},
    "backslashes": {"txt": "\\" * 5000},
    "no ASCII": {"txt": "🧪é" * 3000},
    "a key": {"x" * 9000: 1},
    "records within": {"sections": [{"doi": "b", "txt": "y" * 150}, {"n": [{}, {}]}] * 9, "txt": "x" * 4000},
    "values": {"txt": [[]] * 700},
    "keys": {"txt": {str(i): i for i in range(300)}},
}


@pytest.mark.parametrize("record", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_a_record_beyond_the_limits_is_rejected_and_the_rest_is_read(tmp_path, small, name, record):
    records = [GOOD, record, GOOD, record, GOOD]
    written = [json.dumps(each, ensure_ascii=False) for each in records]
    found = read(tmp_path, name, "\n".join(written) if name == "p.jsonl" else f"[{', '.join(written)}]")
    assert outline(found) == [GOOD, "over_length", GOOD, "over_length", GOOD]
    assert [each.position for each in found] == [0, 1, 2, 3, 4]
    place = "line 2" if name == "p.jsonl" else "record 1"
    assert found[1].problem.detail in (f"{place} is longer than 0 MiB", f"{place} has more than 100 values")
    assert ("values" in found[1].problem.detail) == (record in (LONG["values"], LONG["keys"]))


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_a_record_within_the_limits_is_read_whatever_the_chunks(tmp_path, small, name):
    long = {"doi": "b", "txt": '"]}, {[' * 300, "keywords": ["k"] * 90}
    written = [json.dumps(each) for each in (GOOD, long, long, GOOD)]
    found = read(tmp_path, name, "\n".join(written) if name == "p.jsonl" else f"[{', '.join(written)}]")
    assert outline(found) == [GOOD, long, long, GOOD]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_end_and_the_values_of_a_value_in_pieces(size):
    value = {"a\\": ['"', {"b": [1, 2, {}]}, '\\"]}'], "c": "\\\\"}
    text = json.dumps(value) + ', {"next": 1}'
    skimmer, read_to, ends = limits.Skimmer(), 0, False
    waiting = ""
    for start in range(0, len(text), size):
        waiting += text[start : start + size]
        at, ends = skimmer.feed(waiting, 0)
        read_to, waiting = read_to + at, waiting[at:]
        if ends:
            break
    assert (text[:read_to], ends) == (json.dumps(value), True)
    assert skimmer.values == 11  # one, and one more for each comma and opening bracket


def packed(text: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(text, 1)
    return bz2.compress(text) if ending == ".bz2" else pa.compress(text, codec=COMPRESSION[ending], asbytes=True)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_a_bomb_is_not_held(tmp_path, monkeypatch, name, ending):
    """A text of 64 MiB, packed into some kilobytes, where a record has at most 1 MiB."""
    monkeypatch.setattr(limits, "MAX_RECORD", 1 << 20)
    good = json.dumps(GOOD).encode()
    text = b'{"doi": "b", "txt": "' + b"a" * (1 << 26) + b'"}'
    content = b"\n".join([good, text, good]) if name == "p.jsonl" else b"[" + b",".join([good, text, good]) + b"]"
    path = tmp_path / (name + ending)
    path.write_bytes(packed(content, ending))
    del text, content
    tracemalloc.start()
    held = pa.total_allocated_bytes()
    found = outline(read_records(Location.of(str(path))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [GOOD, "over_length", GOOD]
    assert peak < 20 << 20
    assert pa.total_allocated_bytes() - held < 4 << 20


@pytest.mark.parametrize("blank", ["\n", "\r\n", " \n", "\t"])
def test_many_blanks_behind_an_error(tmp_path, blank):
    """Takes a second; the square of the length would take more than the limit of a test."""
    blanks = blank * (1 << 20)
    assert outline(read(tmp_path, "p.json", '{"a": oops' + blanks + '\n{"a": 1}')) == ["not_json", {"a": 1}]
    assert outline(read(tmp_path, "q.json", '[{"a": oops}' + blanks + "," + blanks + '{"a": 1}]')) == [
        "not_json",
        {"a": 1},
    ]


def test_an_error_in_a_list_costs_its_item_only(tmp_path):
    good = json.dumps(GOOD)
    for wrong in ("oops", "9" * 5000, "tru"):
        found = outline(read(tmp_path, "p.json", f"[{good}, {wrong}, {good}, {good}]"))
        assert found[0] == found[-1] == found[-2] == GOOD
        assert found[1:-2] == ["not_json"] * len(found[1:-2])


# Compressed files


TEXT = "".join(json.dumps({**GOOD, "doi": f"10.1/{i}"}) + "\n" for i in range(3000)).encode()


@pytest.mark.parametrize(
    ("name", "content", "papers", "words"),
    [
        ("p.jsonl.gz", gzip.compress(TEXT) + b"\0" * 5000, 3000, None),
        ("p.jsonl.gz", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]), 3000, None),
        ("p.jsonl.gz", gzip.compress(b"") + gzip.compress(TEXT) + b"\0" + gzip.compress(b""), 3000, None),
        ("p.jsonl.gz", b"".join(gzip.compress(TEXT[i : i + 9]) for i in range(0, len(TEXT), 9)), 3000, None),
        ("p.jsonl.gz", gzip.compress(TEXT) + b"garbage", 3000, "behind the end of its gzip data: Not a gzipped"),
        ("p.jsonl.gz", gzip.compress(TEXT) + b"\0" * 9 + b"x", 3000, "behind the end of its gzip data"),
        ("p.jsonl.gz", gzip.compress(TEXT)[:-9], 2900, "cannot be read: Compressed file ended"),
        ("p.jsonl.gz", gzip.compress(TEXT)[:-8] + b"\1" * 8, 2900, "cannot be read: CRC check failed"),
        ("p.jsonl.gz", TEXT, 0, "cannot be read: Not a gzipped file"),
        ("p.jsonl.zst", pa.compress(TEXT, codec="zstd", asbytes=True) + b"garbage", 2000, "cannot be read: ZSTD"),
        ("p.jsonl.zst", b"", 0, "p.jsonl.zst is empty"),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_follows_compressed_data(tmp_path, name, content, papers, words):
    """Zeros and further members are read as gzip reads them; before damage, all but the last piece is read."""
    found = read(tmp_path, name, content)
    dois = [record.value["doi"] for record in found if record.problem is None]
    assert dois == [f"10.1/{i}" for i in range(len(dois))]
    assert papers <= len(dois) <= 3000
    assert len(dois) > 0 or papers == 0
    problems = [record.problem.detail for record in found if record.problem]
    assert bool(problems) == (words is not None)
    assert words is None or words in problems[-1]


# Parquet


def rows(tmp_path, table, **options):
    pq.write_table(table, tmp_path / "p.parquet", **options)
    return list(read_records(Location.of(str(tmp_path / "p.parquet"))))


FAR = 2**62
NO_TEXT = {
    "timestamp[us]": pa.array([FAR, 1], pa.timestamp("us")),
    "timestamp[us, tz=Mars/Base]": pa.array([1, None], pa.timestamp("us", tz="Mars/Base")),
    "duration[s]": pa.array([FAR, 1], pa.duration("s")),
    "date32[day]": pa.array([2**31 - 1, 1], pa.date32()),
    "list<element: date32[day]>": pa.array([[2**31 - 1], [1]], pa.list_(pa.date32())),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_a_value_without_a_python_value_costs_its_field_only(tmp_path, kind):
    table = pa.table({"doi": ["a", "b"], "txt": ["t", "u"], "title": NO_TEXT[kind]})
    first, second = (paper_fields(record.content()) for record in rows(tmp_path, table))
    assert first["title"] is None
    assert first["left_out"] == [
        {"what": "title was not a string", "detail": f"title: got a value that cannot be read, of type {kind}"}
    ]
    assert second["doi"] == "b"
    first, _ = rows(tmp_path, table.rename_columns(["doi", "title", "txt"]))
    with pytest.raises(Problem, match=r"txt must be a string, got a value that cannot be read"):
        paper_fields(first.content())


def test_other_types_of_columns(tmp_path):
    words = pa.array(["iron", None]).dictionary_encode()
    table = pa.table(
        {
            "doi": pa.array(["a", "b"], pa.large_string()),
            "txt": pa.array(["t", "u"]).dictionary_encode(),
            "keywords": words,
            "source": pa.array([1.5, np.nan]),
            "abstract": pa.array([b"\xff", None]),
        }
    )
    first, second = (paper_fields(record.content()) for record in rows(tmp_path, table))
    assert (first["txt"], first["keywords"], second["txt"], second["keywords"]) == ("t", ["iron"], "u", [])
    assert [flaw["what"] for flaw in first["left_out"]] == ["abstract was not a string", "source was not a string"]
    assert [flaw["detail"] for flaw in second["left_out"]] == ["source: got a number: NaN"]


def test_a_long_cell_costs_its_row_or_its_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_RECORD", 1 << 16)
    texts = [f"text {i}" for i in range(20)]
    texts[7] = "x" * (1 << 17)
    table = pa.table({"doi": [str(i) for i in range(20)], "txt": texts})
    found = rows(tmp_path, table)
    assert [r.position for r in found if r.problem] == [7]
    assert found[7].problem.detail == "row 7 is longer than 0 MiB"
    assert [r.value["doi"] for r in found if not r.problem] == [str(i) for i in range(20) if i != 7]

    decoded = []
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, **o: decoded.append(o["row_groups"]) or batches(self, **o)
    )
    found = rows(tmp_path, table, row_group_size=1)
    assert found[7].problem.detail == "txt of row 7 is longer than 0 MiB"
    assert [r.position for r in found] == list(range(20))
    assert decoded == [[i] for i in range(20) if i != 7]


def test_a_damaged_row_group_costs_its_rows_only(tmp_path):
    texts = ["".join(np.random.default_rng(i).choice(list("abcdefgh"), 4000)) for i in range(4)]
    table = pa.table({"doi": list("abcd"), "txt": texts})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=1, compression="zstd", use_dictionary=False)
    content = bytearray((tmp_path / "p.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "p.parquet").metadata.row_group(1).column(1)
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    found = read(tmp_path, "q.parquet", bytes(content))
    assert [r.position for r in found] == [0, 1, 2, 3]
    assert [r.problem is None for r in found] == [True, False, True, True]
    assert "of row 1, those from row 1 cannot be read" in found[1].problem.detail


def test_rows_are_decoded_a_few_at_a_time(tmp_path):
    """The same long text in every row, packed as one word of a dictionary."""
    text = "x" * (1 << 20)
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"doi": [str(i) for i in range(200)], "txt": [text] * 200}), path)
    held = pa.default_memory_pool().bytes_allocated()
    most = max(
        (pa.default_memory_pool().bytes_allocated() - held, len(record.value["txt"]))
        for record in read_records(Location.of(str(path)))
    )
    assert most[0] < 32 << 20


# Ids


def test_prefixes_of_an_id_are_read_up_to_a_limit():
    key = doi_key("https://doi.org/" * (MAX_PREFIXES - 1) + "doi:10.1000/X")
    assert key == "10.1000/x"
    assert doi_key("doi.org/" * 50_000).count("doi.org/") == 50_000 - MAX_PREFIXES


@pytest.mark.parametrize("key", [*FIELDS, "other"])
def test_a_lone_surrogate_anywhere_costs_no_more_than_its_record(tmp_path, key):
    records = [{**GOOD, key: ["\ud800"] if key in ("keywords", "Q&A") else "\udcff"}, {**GOOD, "\ud800": 1}, GOOD]
    for name in ("p.json", "p.jsonl"):
        text = "\n".join(map(json.dumps, records)) if name == "p.jsonl" else json.dumps(records)
        found = []
        for record in read(tmp_path, name, text):
            try:
                found.append(json.dumps(paper_fields(record.content()), ensure_ascii=False).encode())
            except Problem as problem:
                problem.detail.encode()
        assert len(found) == (3 if key in ("Q&A", "other") else 2)
