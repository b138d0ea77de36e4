"""What an ingest has written is known to a file that outlives it."""

from pathlib import Path

import pyarrow as pa
import pytest

from qaray.run.directory import Run
from qaray.run.inventory import NAMED, Inventory, inventory_files

ROWS = pa.table({"doi": ["a", "b"]})


@pytest.fixture
def run(tmp_path):
    run = Run.at(str(tmp_path))
    for folder in (run.papers, run.papers, run.rejected_papers):
        run.write_shard(folder, f"part-{len(run.papers.files()):06d}", ROWS)
    inventory = Inventory([{"file": "f", "complete": True}])
    inventory.add_shards(run)
    inventory.write(run)
    return run


def problems(run):
    return [str(problem) for problem in Inventory.of(run).problems(run)]


def test_an_inventory_is_read_as_it_was_written(run):
    found = Inventory.of(run)
    assert found.files == [{"file": "f", "complete": True}]
    assert sorted(found.shards) == [
        "_rejected/part-000002.e000000.parquet", "part-000000.e000000.parquet", "part-000001.e000000.parquet",
    ]  # fmt: skip
    assert {facts["rows"] for facts in found.shards.values()} == {2}
    assert problems(run) == []


def test_a_shard_that_is_gone_or_has_another_size_is_named(run):
    first, second = run.paper_shards()
    first.remove()
    Path(second.path).write_bytes(b"")
    run.rejected_shards()[0].remove()
    size = Inventory.of(run).shards[second.name]["bytes"]
    found = problems(run)
    assert [line.split(":")[0] for line in found] == [
        f"{first} is missing (2 rows)",
        f"{second} has 0 bytes, and {size} were written",
        f"{run.rejected_papers}/part-000002.e000000.parquet is missing (2 rows)",
    ]
    assert all(f"`qaray status {run.root} --repair` sets it aside" in line for line in found)


def test_a_shard_of_an_interrupted_ingest_is_none_of_them(run):
    run.write_shard(run.papers, "part-000009", ROWS)
    assert problems(run) == []
    inventory = Inventory.of(run)
    inventory.begin(run, {"f"})  # its rejected records may go from here on
    run.rejected_shards()[0].remove()
    assert problems(run) == []
    assert Inventory.of(run).files == [{"file": "f", "complete": False}]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"files": 3, "shards": {}}', b'{"files": [], "shards": []}', b'{"files": [3]}'],
)
def test_a_damaged_inventory_is_told_and_every_input_is_read_again(run, content):
    (file,) = inventory_files(run)
    file.write_bytes(content)
    found = Inventory.of(run)
    assert (found.files, found.shards) == ([], {})
    assert found.damaged.startswith(f"{file} is damaged (")


def test_changed_papers_are_counted_once_and_named(run):
    inventory = Inventory()
    inventory.note_changed(["a", "b"])
    inventory.note_changed(["b", "c"])
    assert (inventory.changed, inventory.changed_dois) == (3, ["a", "b", "c"])
    inventory.note_changed([str(i) for i in range(NAMED)])
    assert (inventory.changed, len(inventory.changed_dois)) == (NAMED + 3, NAMED)
