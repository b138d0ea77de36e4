"""From records to papers: which spellings are one paper, what is written and counted; `qaray parse`."""

import json
from collections import Counter

import pyarrow as pa
import pytest

from qaray.config import ParseConfig
from qaray.corpus.doi import doi_key
from qaray.corpus.doi_index import AGAIN, CHANGED, DoiIndex, Ingested
from qaray.corpus.papers import Intake, _FileReader, _identify, _write
from qaray.generate.parse_outputs import parse_outputs
from qaray.run.directory import Run
from qaray.run.errors import RunError
from qaray.run.rejects import rejection_summary, write_rejected_records
from qaray.run.tries import Tries
from qaray.schema import PAPER_SCHEMA, table

SAME = [
    "10.5555/Ab-1", "10.5555/ab-1", " 10.5555/AB-1\n", "doi:10.5555/ab-1", "DOI: 10.5555/ab-1", "doi 10.5555/ab-1",
    "https://doi.org/10.5555/ab-1", "http://dx.doi.org/10.5555/Ab-1", "doi.org/10.5555/ab-1",
    "https://www.doi.org/10.5555%2Fab-1", "doi:https://doi.org/10.5555/ab-1", "info:doi/10.5555/ab-1",
    "urn:doi:10.5555/ab-1", "10.5555/ ab-1", "\u200b10.5555/ab-1\ufeff",
]  # fmt: skip


@pytest.mark.parametrize("doi", SAME)
def test_spellings_of_one_doi(doi):
    assert doi_key(doi) == "10.5555/ab-1"


@pytest.mark.parametrize(
    ("doi", "key"),
    [
        ("10.5555/ab-2", "10.5555/ab-2"),
        ("paper 1 2", "paper 1 2"),  # blanks within an id that is no DOI
        ("doing", "doing"),
        ("a%2Fb", "a%2fb"),
        ("https://example.org/10.5555/x", "https://example.org/10.5555/x"),
        ("0704.0010", "0704.0010"),
        ("e\u0301", "é"),
        ("doi: ", ""),
        ("https://doi.org/", ""),
    ],
)
def test_other_ids_are_opaque(doi, key):
    assert doi_key(doi) == key


def test_the_index_takes_spellings_for_one_paper():
    with DoiIndex({"f"}) as index:
        found = index.judge([(doi, "f", i, "d", None) for i, doi in enumerate(SAME[:3])], None)
        assert found == ["", *["record 0 of f has the same doi"] * 2]
        assert index.judge([("x", "f", 3, None, "not_json"), ("10.5555/ab-2", "f", 4, "d", None)], 2) == [
            "not_json",
            "",
        ]


EARLIER = pa.table({"doi": ["https://doi.org/10.5555/A"], "file": ["f"], "position": [0], "digest": ["d"]})


def test_a_paper_of_an_earlier_start_is_known_under_another_spelling():
    with DoiIndex({"f"}) as index:
        index._add(EARLIER)
        assert index.judge([("10.5555/a", "f", 0, "d", None), ("10.5555/A", "f", 1, "d", None)], None) == [
            AGAIN, "record 0 of f has the same doi",
        ]  # fmt: skip
        assert index.changed == {}


def test_a_paper_of_an_earlier_start_with_another_text_is_changed():
    with DoiIndex({"f", "g"}) as index:
        index._add(EARLIER)
        records = [("10.5555/A", "g", 0, "e", None), ("10.5555/A", "f", 0, "e", None), ("10.5555/A", "f", 1, "d", None)]
        twice = "record 0 of f has the same doi"
        assert index.judge(records, None) == [twice, CHANGED, twice]  # in another input it is a second paper
        assert index.changed == {"f": ["10.5555/A"]}


def test_a_paper_of_a_file_whose_name_another_one_has_now_is_known():
    """Two files exchanged their names: ``g`` has the record of ``f``, which is read again, too."""
    with DoiIndex({"f", "g"}, {"f", "g"}) as index:
        index._add(EARLIER)
        assert index.judge([("10.5555/A", "g", 4, "d", None)], None) == [AGAIN]
        assert index.judge([("10.5555/A", "f", 0, "d", None)], None) == ["record 4 of g has the same doi"]
    with DoiIndex({"f", "g"}, {"g"}) as index:  # f is as it was, and has the record still
        index._add(EARLIER)
        assert index.judge([("10.5555/A", "g", 4, "d", None)], None) == ["record 0 of f has the same doi"]


def test_notes_count_papers():
    found = Ingested()
    found.left_out.update(["title was not a string"] * 2 + ["keywords is written Keywords"])
    assert found.notes() == [
        "1 paper: keywords is written Keywords and is left out",
        "2 papers: title was not a string and is left out",
    ]


def test_a_block_is_written_with_its_rejected_records_and_what_was_left_out(tmp_path):
    run = Run.at(str(tmp_path))
    reader = _FileReader(run.root.fs, Intake("f", 10), Tries.of(run))
    values = [{"doi": "a", "txt": "t", "title": 3, "source": 4}, {"doi": "b", "txt": "u"}, {"doi": "c"}]
    staged = table([reader._stage("f", i, value, None) for i, value in enumerate(values)], reader.intake.staged_schema)
    with DoiIndex({"f"}) as index:
        verdicts = index.judge(_identify(staged), None)
    what = ["title was not a string", "source was not a string"]
    assert _write(staged, verdicts, run, "000000", 0, PAPER_SCHEMA) == (0, what)
    with DoiIndex.of(run, {"f"}, read=()) as index:
        assert (index.counts.papers, index.counts.rejected, index.counts.left_out) == (2, 1, Counter(what))
    (shard,) = run.left_out.files(".parquet")
    assert [(row["doi"], row["detail"]) for row in shard.read_table().to_pylist()] == [
        ("a", "title: got a number: 3"), ("a", "source: got a number: 4"),
    ]  # fmt: skip
    assert run.shard_names() == ["000000.e000000"]  # the folders beside the shards are none
    write_rejected_records(run)
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"].startswith("txt is missing; keys: doi;")


@pytest.mark.parametrize(
    ("number", "first", "words"),
    [
        (0, "", "there are no records"),
        (1, "why", "1 record was rejected: why"),
        (2, "why", "2 records were rejected, the first because why"),
    ],
)
def test_rejection_summary(number, first, words):
    assert rejection_summary(number, first) == words


def parse(tmp_path, outputs, papers):
    (tmp_path / "o.json").write_text(json.dumps(outputs))
    (tmp_path / "p.json").write_text(json.dumps(papers))
    config = ParseConfig(
        original_output=str(tmp_path / "o.json"), file_path=str(tmp_path / "p.json"), output_dir=str(tmp_path / "out")
    )
    try:
        return parse_outputs(config)
    finally:
        lines = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
        parse.rejected = [(row["doi"], row["reason"]) for row in map(json.loads, lines)]


def test_outputs_join_papers_under_any_spelling(tmp_path):
    answer = "Q1: Why?\nA1: So."
    outputs = [
        {"doi": "https://doi.org/10.5555/A", "output": answer},
        {"doi": "10.5555/a", "output": answer},
        {"doi": "doi:10.5555/B", "output": answer},
    ]
    papers = [{"doi": "10.5555/a", "txt": "t", "title": 3}, {"doi": "DOI:10.5555/A", "txt": "t"}]
    counts = parse(tmp_path, outputs, papers)
    left_out = {"title was not a string": 1}
    assert counts == {
        "papers": 1, "pairs": 1, "short": 0, "read": 1, "rejected": 3, "without_pairs": {}, "left_out": left_out,
    }  # fmt: skip
    (processed,) = json.loads((tmp_path / "out/processed_output.json").read_text())
    assert (processed["doi"], processed["title"], len(processed["Q&A"])) == ("10.5555/a", None, 1)
    assert parse.rejected == [
        ("10.5555/a", "duplicate_doi"), ("DOI:10.5555/A", "duplicate_doi"), ("doi:10.5555/B", "no_paper"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "papers", "words", "rejected"),
    [
        (
            [{"doi": "a", "generation": "x"}], [{"doi": "a", "txt": "t"}],
            r"no output .*1 record was rejected: output is missing; keys: doi, generation; "
            r"generation: did you mean output\?", [("a", "missing_key")],
        ),
        (
            [{"doi": "a", "output": ["x"]}, 3], [{"doi": "a", "txt": "t"}],
            r'2 records were rejected, the first because output must be a string, got a list: \["x"\]',
            [("a", "wrong_type"), (None, "wrong_type")],
        ),
        (
            [{"doi": "a", "output": "x", "window": "1"}], [], 'window must be an integer, got a string: "1"',
            [("a", "wrong_type")],
        ),
        ([], [{"doi": "a", "txt": "t"}], "no output .* there are no records", []),
        (
            [{"doi": "a", "output": "Q1: b?\nA1: c."}], [{"doi": "a", "text": "t"}],
            r"no paper .*1 record was rejected: txt is missing; keys: doi, text; text: did you mean txt\?",
            [("a", "missing_key")],
        ),
    ],
)  # fmt: skip
def test_parse_writes_what_it_rejects_before_it_fails_and_fails_alike_again(tmp_path, outputs, papers, words, rejected):
    for _ in range(2):
        with pytest.raises(RunError, match=words):
            parse(tmp_path, outputs, papers)
        assert parse.rejected == rejected


def test_a_missing_file_leaves_nothing_behind(tmp_path):
    config = ParseConfig(original_output=str(tmp_path / "o"), file_path="x", output_dir=str(tmp_path / "out"))
    with pytest.raises(FileNotFoundError):
        parse_outputs(config)
    assert not (tmp_path / "out").exists()
