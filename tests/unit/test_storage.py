import errno
import gzip
import io
import json
import os
import secrets

import fsspec
import fsspec.implementations.local
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from qaray.corpus.readers.dispatch import read_records
from qaray.run.storage import Location, StoreFailed, in_threads, patient


def places(tmp_path):
    memory = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))
    return [Location.of(str(tmp_path)), Location(memory, f"/{tmp_path.name}")]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    for place in places(tmp_path):
        file = place / "x.json"
        place.make_folder()
        with pytest.raises(RuntimeError), file.write() as stream:
            stream.write(b"half")
            raise RuntimeError
        assert not file.exists()
        assert not place.files()
        file.write_json({"a": "é"})
        assert file.read_json() == {"a": "é"}
        assert (place / "nothing").read_json() is None


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = Location.of(str(tmp_path)) / "x.json"
    file.write_json(1)
    with pytest.raises(RuntimeError), file.write() as stream:
        stream.write(b"2")
        raise RuntimeError
    assert file.read_json() == 1
    assert os.listdir(tmp_path) == ["x.json"]


def test_what_a_killed_writer_left_is_not_listed_and_can_be_removed(tmp_path):
    place = Location.of(str(tmp_path))
    (place / "a.parquet").write_table(pa.table({"x": [1]}))
    (tmp_path / ".tmp-123-b.parquet").write_bytes(b"half")
    assert [f.name for f in place.files(".parquet")] == ["a.parquet"]
    place.remove_temporary()
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("x" * 250 + ".json", "é" * 120 + ".json"):
        file = Location.of(str(tmp_path)) / name
        file.write_json(1)
        assert file.read_json() == 1
        assert not file.create(b"2")


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json is corrupt"):
        (Location.of(str(tmp_path)) / "x.json").read_json()


def test_unknown_scheme():
    with pytest.raises(ValueError, match="nosuch://"):
        Location.of("nosuch://a/b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_an_error_and_nothing_is_left(tmp_path):
    # /dev/full accepts opens and fails writes: the same errors as a full disk, without filling one.
    target = tmp_path / "full"
    os.symlink("/dev/full", target)
    with pytest.raises(OSError), pafs.LocalFileSystem().open_output_stream(str(target)) as stream:
        stream.write(b"x" * (1 << 20))
    assert not Location.of(str(tmp_path)).files(".parquet")


@pytest.mark.parametrize(
    ("number", "failures", "calls"),
    [(errno.EIO, 2, 3), (None, 3, 4), (errno.ENOSPC, 1, 1), (errno.EROFS, 1, 1), (errno.ETIMEDOUT, 4, 4)],
)
def test_a_store_that_is_away_for_a_moment_is_asked_again(monkeypatch, number, failures, calls):
    monkeypatch.setattr("qaray.run.storage.PAUSES", (0, 0, 0))
    asked = []

    @patient
    def write(value):
        asked.append(value)
        if len(asked) <= failures:
            raise OSError(number, "away") if number else OSError("AWS Error SLOW_DOWN")
        return value

    if calls > failures:
        assert write("x") == "x"
    else:
        with pytest.raises(OSError, match="away"):
            write("x")
    assert asked == ["x"] * calls


def test_results_of_threads_come_in_order():
    assert list(in_threads(lambda number: number * number, iter(range(100)))) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [2, 1, 0, 3]))


class Unsteady(fsspec.implementations.local.LocalFileSystem):
    """A disk whose reads fail: every second one, or all of them after the first ``good``; with 0 it opens nothing."""

    protocol = "unsteady"
    cachable = False

    def __init__(self, good=None):
        super().__init__()
        self.good, self.reads = good, 0

    def open(self, path, mode="rb", **options):
        if self.good == 0:
            raise OSError(errno.EIO, "the disk is away")
        file, disk = super().open(path, mode, **options), self

        class Failing(io.RawIOBase):
            def read(self, number=-1):
                disk.reads += 1
                if disk.reads % 2 == 0 if disk.good is None else disk.reads > disk.good:
                    raise OSError(errno.EIO, "the disk is away")
                return file.read(number)

            def __getattr__(self, name):
                return getattr(file, name)

            seek, tell, readable, seekable = file.seek, file.tell, file.readable, file.seekable

        return Failing()


def written(folder):
    """Papers in files of all kinds that are read."""
    papers = [{"doi": f"10.1/{i}", "txt": secrets.token_hex(20_000), "keywords": ["k"]} for i in range(100)]
    lines = "".join(json.dumps(paper) + "\n" for paper in papers).encode()
    (folder / "p.jsonl").write_bytes(lines)
    (folder / "p.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "p.json").write_text(json.dumps(papers))
    pq.write_table(pa.Table.from_pylist(papers), folder / "p.parquet", row_group_size=10)
    return papers


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.parquet"])
def test_reads_that_fail_for_a_moment_lose_no_record(tmp_path, monkeypatch, name):
    monkeypatch.setattr("qaray.run.storage.PAUSES", (0, 0, 0))
    papers, disk = written(tmp_path), Unsteady()
    file = Location(pafs.PyFileSystem(pafs.FSSpecHandler(disk)), str(tmp_path / name))
    records = list(read_records(file))
    assert disk.reads > 2
    assert [record.problem for record in records] == [None] * len(papers)
    assert [record.value["doi"] for record in records] == [paper["doi"] for paper in papers]


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.parquet"])
def test_a_store_that_stays_away_is_no_damage_of_a_file(tmp_path, monkeypatch, name, good):
    monkeypatch.setattr("qaray.run.storage.PAUSES", (0, 0, 0))
    written(tmp_path)
    file = Location(pafs.PyFileSystem(pafs.FSSpecHandler(Unsteady(good))), str(tmp_path / name))
    with pytest.raises(StoreFailed, match=f"cannot read .*{name}: the disk is away"):
        list(read_records(file))
