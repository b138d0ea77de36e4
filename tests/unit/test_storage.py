import errno
import os

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from qaray.storage import Location, patient


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


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json is damaged"):
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
    monkeypatch.setattr("qaray.storage.PAUSES", (0, 0, 0))
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
