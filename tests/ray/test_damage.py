"""Inputs that change, and damaged, missing, doubled and foreign files in a run directory."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

from qaray.corpus import papers
from tests.commands import check_complete, generations, qaray
from tests.conftest import make_paper, read_jsonl, write_jsonl

ECHO = ("--engine", "echo", "--num_qas", "3", "--papers_per_shard", "10", "--report_papers", "0")


def args_of(file, out, *more):
    return ("generate", "--file_path", file, "--output_dir", out, *ECHO, *more)


def dois(numbers):
    return {make_paper(i)["doi"] for i in numbers}


def ends_well(done):
    assert done.returncode == 0, done.stderr
    return done.stderr


def ends_badly(done, *words):
    """With one line for the user's mistake."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("qaray: ")]
    assert all(str(word) in line for word in words), line


@pytest.fixture
def finished(tmp_path):
    """A finished run of 40 papers in four shards, and two rejected records."""
    file = write_jsonl(tmp_path / "p.jsonl", [*[make_paper(i) for i in range(40)], {"doi": "x"}, make_paper(3)])
    ends_well(qaray(*args_of(file, tmp_path / "out")))
    return file, tmp_path / "out"


def test_what_is_added_or_replaced_while_it_is_read_is_read(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    file = write_jsonl(tmp_path / "in/p.jsonl", [make_paper(i) for i in range(10)])
    other = write_jsonl(tmp_path / "in/q.jsonl", [make_paper(20), {"doi": "y"}])
    read, changes = papers._read, [10, 11]

    def disturbed(*given):
        done = read(*given)
        if changes:
            with file.open("a") as stream:
                stream.write(json.dumps(make_paper(changes.pop(0))) + "\n")
            new = write_jsonl(tmp_path / "new", [make_paper(21), {"doi": "z"}])
            os.replace(new, other)
        return done

    monkeypatch.setattr(papers, "_read", disturbed)
    ends_well(qaray(*args_of(tmp_path / "in", out)))
    manifest = check_complete(out, dois([*range(12), 20, 21]))
    assert [row["doi"] for row in read_jsonl(out / "rejected.jsonl")] == ["z"]
    assert all(entry["complete"] for entry in manifest["inputs"])
    changes += [12, 13, 14]  # more often than a start reads
    file.touch()
    said = ends_well(qaray(*args_of(tmp_path / "in", out)))
    assert f"{file} changed while it was read: rerun the command to read what was added" in said
    ends_well(qaray(*args_of(tmp_path / "in", out)))
    check_complete(out, dois([*range(15), 20, 21]))


@pytest.mark.parametrize("policy", ["report", "keep", "redo"])
def test_a_paper_with_another_text(tmp_path, policy):
    out, file = tmp_path / "out", write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(12)])
    ends_well(qaray(*args_of(file, out)))
    before = json.loads((out / "processed_output.json").read_text())
    new = [make_paper(i, txt=make_paper(90 + i)["txt"]) if i in (2, 11) else make_paper(i) for i in range(12)]
    write_jsonl(file, [{**new[0], "doi": f"https://doi.org/{new[0]['doi'].upper()}"}, *new[1:]])
    said = ends_well(qaray(*args_of(file, out, "--changed", policy)))
    manifest = check_complete(out, dois(range(12)))
    named = [new[2]["doi"], new[11]["doi"]]
    after = json.loads((out / "processed_output.json").read_text())
    changed = {
        old["doi"] for old, now in zip(before, sorted(after, key=lambda row: row["doi"]), strict=True) if old != now
    }
    assert changed == (set(named) if policy == "redo" else set())
    assert manifest["changed"] == {"papers": 0 if policy == "redo" else 2, "dois": [] if policy == "redo" else named}
    assert ("2 papers have another text" in said) == (policy != "keep")
    assert len(generations(out)) == 12  # no answer of a text that is gone
    if policy == "redo":
        assert all(row["txt"] == make_paper(90 + int(row["doi"][-2:]))["txt"] for row in after if row["doi"] in named)
        return
    ends_well(qaray(*args_of(file, out)))  # it is still known
    assert json.loads((out / "manifest.json").read_text())["changed"]["papers"] == 2
    ends_well(qaray(*args_of(file, out, "--changed", "redo")))
    assert json.loads((out / "manifest.json").read_text())["changed"]["papers"] == 0
    check_complete(out, dois(range(12)))


def test_damaged_answers_are_named_set_aside_and_made_again(finished):
    file, out = finished
    first, second, third, *_ = sorted((out / "generations").iterdir())
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    second.write_bytes(b"")
    third.unlink()
    ends_badly(qaray("evaluate", "--output_dir", out, "--engine", "echo", "--embedding_model", "echo"), first, "rerun")
    status = qaray("status", out).stdout
    said = ends_well(qaray(*args_of(file, out)))
    for broken in (first, second):
        assert f"{broken} is damaged" in said
        assert f"{broken} is damaged" in status
        assert (out / "damaged" / f"generations-{broken.name}").exists()
    assert status.startswith("generate: interrupted, 10 of 40 papers, 2 rejected\n")
    check_complete(out, dois(range(40)))
    assert len(generations(out)) == 40


def gone(shard):
    shard.unlink()


def cut(shard):
    shard.write_bytes(shard.read_bytes()[:-7])


def flipped(shard):
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)


def exchanged(shard):
    shutil.copy(next(other for other in shard.parent.glob("*.parquet") if other != shard), shard)


@pytest.mark.parametrize(
    ("folder", "damage"),
    [("papers", gone), ("papers", cut), ("papers", exchanged), ("papers/_rejected", gone), ("papers/_rejected", cut)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_damaged_shard_of_papers_stops_the_run_until_it_is_repaired(finished, folder, damage):
    file, out = finished
    shard = sorted((out / folder).glob("*.parquet"))[0]
    damage(shard)
    for command in (args_of(file, out), args_of(file, out)):
        ends_badly(qaray(*command), shard if damage is not exchanged else "", "`qaray status")
    if damage is not exchanged:
        status = qaray("status", out).stdout
        assert status.startswith("generate: damaged, 40 of 40 papers, 2 rejected\n")
        assert f"  {shard} " in status
    if folder == "papers":
        ends_badly(qaray("evaluate", "--output_dir", out, "--engine", "echo", "--embedding_model", "echo"))
    mended = qaray("status", out, "--repair")
    assert mended.returncode == 0, mended.stderr
    assert "faults mended" in mended.stdout
    assert str(shard) in mended.stderr
    ends_well(qaray(*args_of(file, out)))
    manifest = check_complete(out, dois(range(40)))
    assert manifest["counts"]["by_reject_reason"] == {"missing_key": 1, "duplicate_doi": 1}
    assert "no fault found" in qaray("status", out, "--repair").stdout


def test_papers_that_are_stored_twice_are_named_and_removed(finished):
    file, out = finished
    first = sorted((out / "papers").glob("*.parquet"))[0]
    shutil.copy(first, first.with_name("part-000077.e000001.parquet"))
    for _ in range(2):
        ends_badly(qaray(*args_of(file, out)), "10 papers are stored more than once", make_paper(0)["doi"], "--repair")
    assert "10 papers of" in qaray("status", out, "--repair").stderr
    ends_well(qaray(*args_of(file, out)))
    check_complete(out, dois(range(40)))
    assert pq.read_table(out / "papers").num_rows == 40


def test_a_flipped_bit_and_lost_records_of_the_run_are_found_by_a_repair(finished):
    file, out = finished
    shard = sorted((out / "papers").glob("*.parquet"))[-1]
    flipped(shard)
    (out / "run.json").unlink()
    (out / "manifest.json").write_text("[]")
    mended = qaray("status", out, "--repair")
    for name in ("run.json", "manifest.json", shard.name):
        assert name in mended.stderr, mended.stderr
    ends_well(qaray(*args_of(file, out)))
    check_complete(out, dois(range(40)))


def test_a_damaged_inventory_is_named_and_the_inputs_are_read_again(finished):
    file, out = finished
    (inventory,) = (out / "papers").glob("_sources.*")
    inventory.write_text("{")
    assert f"{inventory} is damaged" in ends_well(qaray(*args_of(file, out)))
    check_complete(out, dois(range(40)))
    assert "is damaged" not in ends_well(qaray(*args_of(file, out)))


def test_a_damaged_list_of_what_counts_is_named_and_made_again(finished):
    file, out = finished
    ends_well(qaray(*args_of(file, out)))
    (listed,) = (out / "epochs").glob("*.parquet")
    listed.write_bytes(b"")
    ends_badly(qaray(*args_of(file, out)), listed, "--repair")
    assert str(listed) in qaray("status", out, "--repair").stderr
    ends_well(qaray(*args_of(file, out)))
    check_complete(out, dois(range(40)))


def test_no_foreign_folder_is_written_to(tmp_path, finished):
    file, out = finished
    theirs = tmp_path / "theirs"
    (theirs / "report").mkdir(parents=True)
    for name in ("manifest.json", "processed_output.json", "report/index.html"):
        (theirs / name).write_text("theirs")
    processed = out / "processed_output.json"
    parse = ("parse", "--original_output", out / "original_output.json", "--file_path", file, "--output_dir")
    evaluate = ("evaluate", "--processed_output", processed, "--engine", "echo", "--embedding_model", "echo")
    ends_badly(qaray(*args_of(file, theirs)), theirs, "not empty")
    ends_badly(qaray(*parse, theirs), theirs, "processed_output.json")
    ends_badly(qaray(*evaluate, "--output_dir", theirs), theirs, "report")
    ends_badly(qaray(*parse, out), out, "is a run")
    assert {path.name: path.read_text() for path in theirs.rglob("*") if path.is_file()} == dict.fromkeys(
        ("manifest.json", "processed_output.json", "index.html"), "theirs"
    )
    for _ in range(2):  # its own results may be written again
        ends_well(qaray(*parse, tmp_path / "parsed"))
