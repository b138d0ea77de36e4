"""Which files are read: none of a run, none twice, and every one that changed."""

import os

import pytest

from qaray.corpus.inputs import fingerprints, input_files, read_entry, unread
from qaray.run.directory import Run
from qaray.run.storage import Location

MIDDLE = 1 << 18


def place(path, content=b"{}\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Location.of(str(path))


def read(files):
    return [{**read_entry(file), "complete": True} for file in files]


def found(files, known):
    return [file.name for file in unread(files, known, fingerprints(files))]


@pytest.fixture
def run(tmp_path):
    run = Run.at(str(tmp_path / "data/out"))
    run.identify({"seed": 0})
    place(tmp_path / "data/out/processed_output.json")
    place(tmp_path / "data/out/papers/part-000000.e000001.parquet")
    return run


def test_no_run_is_an_input(run, tmp_path):
    paper = place(tmp_path / "data/papers.jsonl")
    other = Run.at(str(tmp_path / "data/runs/other"))
    other.identify({"seed": 1})
    place(tmp_path / "data/runs/other/processed_output.json")
    place(tmp_path / "data/runs/other/deep/er/rows.jsonl")
    (tmp_path / "data/linked.json").symlink_to(tmp_path / "data/out/processed_output.json")
    (tmp_path / "data/folder").symlink_to(tmp_path / "data/runs/other")
    for pattern in ("data", "data/**/*.json*", "data/*"):
        assert input_files(str(tmp_path / pattern), run) == [paper]
    for pattern in ("data/out", "data/runs/other", "data/linked.json", "data/out/processed_output.json"):
        with pytest.raises(FileNotFoundError, match="only files of the run itself or of other runs"):
            input_files(str(tmp_path / pattern), run)
    named = tmp_path / "data/runs/other/processed_output.json"  # another run's results, asked for by name
    assert [file.path for file in input_files(str(named), run)] == [str(named)]


def test_a_file_that_changed_is_read_again(tmp_path):
    files = [place(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")]
    known = read(files)
    assert found(files, known) == []
    (tmp_path / "b.jsonl").write_bytes(b"{}\n{}\n")
    os.utime(tmp_path / "c.jsonl", ns=(1, 1))
    known[3]["complete"] = False
    assert found(files, known) == ["b.jsonl", "c.jsonl", "d.jsonl"]
    assert found([*files, place(tmp_path / "e.jsonl")], known) == ["b.jsonl", "c.jsonl", "d.jsonl", "e.jsonl"]


def test_a_moved_file_is_known_by_all_of_its_content(tmp_path):
    ends = b"{}\n" * 40_000
    first = place(tmp_path / "one/a.jsonl", ends + b"1" * MIDDLE + ends)
    known = read([first])
    same = place(tmp_path / "two/a.jsonl", ends + b"1" * MIDDLE + ends)
    other = place(tmp_path / "three/a.jsonl", ends + b"2" * MIDDLE + ends)
    assert found([same], known) == []
    assert found([other], known) == ["a.jsonl"]  # one name, size, beginning and end
    assert found([first, same], known) == ["a.jsonl"]  # it was not moved, but is there twice
    assert found([place(tmp_path / "two/b.jsonl", ends + b"1" * MIDDLE + ends)], known) == ["b.jsonl"]


def test_what_changes_while_it_is_hashed_has_no_entry(tmp_path, monkeypatch):
    file = place(tmp_path / "a.jsonl")
    assert set(read_entry(file)) == {"file", "size", "modified_ns", "digest", "sha256"}
    monkeypatch.setattr("qaray.corpus.inputs.content_hash", lambda file: place(tmp_path / "a.jsonl", b"{}\n{}\n").name)
    assert read_entry(file) is None
    monkeypatch.setattr("qaray.corpus.inputs.content_hash", lambda file: file.remove())
    assert read_entry(file) is None
