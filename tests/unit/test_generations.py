"""Answers on disk: many small files become one, and every key counts once."""

from pathlib import Path

import pyarrow as pa
import pytest

from qaray.generate.answers import MAX_FILES, drop_answers, merge_answers, read_answers
from qaray.generate.rounds import _Writer
from qaray.run.directory import Run
from qaray.run.errors import Damaged
from qaray.run.storage import Location
from qaray.schema import COMPLETION_SCHEMA, PARSED_SCHEMA, table


def answer(number, attempt=1):
    return {"doi": f"d{number}", "shard": "part-000000", "row": number, "window": 0, "attempt": attempt, "pairs": []}


def write(run, rows):
    keys = [(row["doi"], row["window"], row["attempt"]) for row in rows]
    run.generation_file("part-000000", keys).write_table(table(rows, PARSED_SCHEMA))


def test_many_files_become_one_with_every_key_once(tmp_path):
    run = Run.at(str(tmp_path))
    for i in range(MAX_FILES + 8):
        write(run, [answer(i), answer(i, attempt=2)])
    write(run, [answer(0), answer(1)])  # keys that stand in another file too
    before = run.generation_files()["part-000000"]
    merged = merge_answers(run, "part-000000", before)
    assert merged == run.generation_files()["part-000000"]
    assert len(merged) == 1
    rows = read_answers(run.root.fs, merged)
    table_of = Location(run.root.fs, merged[0]).read_table()
    assert (table_of.num_rows, table_of.schema) == (2 * (MAX_FILES + 8), PARSED_SCHEMA)
    keys = sorted((f"d{i}", 0, attempt) for i in range(MAX_FILES + 8) for attempt in (1, 2))
    assert merged == [run.generation_file("part-000000", keys).path]
    assert {doi: len(own) for doi, own in rows.items()} == {f"d{i}": 2 for i in range(MAX_FILES + 8)}
    assert merge_answers(run, "part-000000", merged) == merged


def test_a_merge_that_died_while_removing_is_done_again(tmp_path):
    run = Run.at(str(tmp_path))
    for i in range(MAX_FILES + 8):
        write(run, [answer(i)])
    before = run.generation_files()["part-000000"]
    merge_answers(run, "part-000000", before)
    write(run, [answer(3)])  # one that had not been removed
    left = [*before, *run.generation_files()["part-000000"]]
    assert len(merge_answers(run, "part-000000", left)) == 1
    assert len(read_answers(run.root.fs, run.generation_files()["part-000000"])) == MAX_FILES + 8


def test_few_files_stay(tmp_path):
    run = Run.at(str(tmp_path))
    for i in range(MAX_FILES):
        write(run, [answer(i)])
    paths = run.generation_files()["part-000000"]
    assert merge_answers(run, "part-000000", paths) == paths


def test_only_the_columns_asked_for_are_read(tmp_path):
    run = Run.at(str(tmp_path))
    write(run, [answer(0)])
    rows = read_answers(run.root.fs, run.generation_files()["part-000000"], ["doi", "window", "attempt"])
    assert rows == {"d0": [{"doi": "d0", "window": 0, "attempt": 1}]}


def test_damaged_answers_are_told_and_the_others_are_read(tmp_path):
    run = Run.at(str(tmp_path))
    for i in range(4):
        write(run, [answer(i)])
    paths = run.generation_files()["part-000000"]
    Path(paths[0]).write_bytes(b"")
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:-20])
    Location(run.root.fs, paths[2]).write_table(pa.table({"doi": ["d2"]}))
    damaged = {}
    rows = read_answers(run.root.fs, paths, None, lambda file, damage: damaged.update({file.path: str(damage)}))
    assert (len(rows), list(damaged)) == (1, paths[:3])
    with pytest.raises(
        Damaged, match=f"{paths[0]} is damaged .*: rerun `qaray generate`, which makes its answers again"
    ):
        read_answers(run.root.fs, paths)


def test_a_flipped_bit_is_damage(tmp_path):
    run = Run.at(str(tmp_path))
    write(run, [{**answer(0), "output": "x" * 4000}])
    (path,) = run.generation_files()["part-000000"]
    content = bytearray(Path(path).read_bytes())
    content[60] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(Damaged):
        read_answers(run.root.fs, [path])


def test_answers_of_a_paper_are_dropped(tmp_path):
    run = Run.at(str(tmp_path))
    write(run, [answer(0), answer(1), answer(0, attempt=2)])
    write(run, [answer(2)])
    write(run, [answer(1, attempt=2)])
    drop_answers(run, run.generation_files()["part-000000"], {"d1"})
    rows = read_answers(run.root.fs, run.generation_files()["part-000000"])
    assert {doi: len(own) for doi, own in rows.items()} == {"d0": 2, "d2": 1}


def completion(doi, output, attempt=1, reason=None):
    own = {"doi": doi, "shard": "part-000000", "window": 0, "attempt": attempt, "output": output, "num_qas": 2}
    rest = {"reason": reason, "finish_reason": None if reason else "stop", "prompt_tokens": 9, "output_tokens": 3}
    return {**dict.fromkeys(COMPLETION_SCHEMA.names), **own, **rest, "began": 0.0}


def test_a_paper_counts_as_rejected_once_its_attempts_are_spent(tmp_path):
    rows = [
        completion("paired", "Q1: What?\nA1: That.\n"),
        completion("empty", "nothing"),
        completion("empty", "nothing again", attempt=2),
        completion("asked again", "nothing"),
        completion("failed", "", reason="over_length"),
    ]
    written = _Writer(Run.at(str(tmp_path)), max_attempts=2)(table(rows, COMPLETION_SCHEMA)).to_pylist()[0]
    assert written["settled"] == 4
    assert (written["rejected"], sorted(written["reasons"])) == (2, ["no_pairs", "over_length"])
