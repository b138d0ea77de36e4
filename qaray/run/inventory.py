"""The inventory of an ingest: what was read, and what was written of it.

OUT/papers/_sources.e000003.json   {"files": [input files], "shards": {name: rows, bytes, sha256}, "changed": …}

A shard that is truncated, removed or exchanged differs from its entry. Shards without an entry are those of an ingest
that was interrupted: their input files are read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.errors import Damaged
from qaray.run.storage import Location, NotJson, in_threads

NAMED = 1000  # changed papers whose dois are kept


@dataclass
class Inventory:
    """Input files, shards, and changed papers of a run's ingest."""

    files: list[dict[str, Any]] = field(default_factory=list)  # ``complete``: read to its end
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)  # by path within OUT/papers
    changed: int = 0  # papers whose text changed after they were ingested, and whose pairs are those of the old text
    changed_dois: list[str] = field(default_factory=list)  # of the first NAMED
    damaged: str = ""  # what is wrong with the file, if it could not be read: every input is read again

    @classmethod
    def of(cls, run: Run) -> Inventory:
        """The run's inventory; an empty one if there is none, or if it is damaged."""
        files = inventory_files(run)
        if not files:
            return cls()
        try:
            content = files[-1].read_json()
            return cls(
                [{"complete": False, **entry, "file": str(entry["file"])} for entry in content["files"]],
                {str(name): dict(facts) for name, facts in content["shards"].items()},
                int(content["changed"]),
                [str(doi) for doi in content["changed_dois"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = error.why if isinstance(error, NotJson) else error
            return cls(damaged=f"{files[-1]} is damaged ({what}): the input files are read again")

    def write(self, run: Run) -> None:
        """Writes the inventory in the name of the run's epoch. Raises Superseded."""
        file = run.papers / run.view.named("_sources", ".json")
        content = {name: getattr(self, name) for name in ("files", "shards", "changed", "changed_dois")}
        run.view.commit(file, lambda: file.write_json(content))
        for old in inventory_files(run)[:-1]:
            run.view.remove(old)

    def begin(self, run: Run, files: set[str]) -> None:
        """Notes that these files are about to be read: they count as unread, and their rejected records may go."""
        if self.files or self.shards:
            for entry in self.files:
                entry["complete"] = entry["complete"] and entry["file"] not in files
            self.shards = {name: facts for name, facts in self.shards.items() if not name.startswith("_")}
            self.write(run)

    def add_shards(self, run: Run) -> None:
        """Adds an entry for every shard that has none; removes those of shards that are not there."""
        files = {file.within(run.papers): file for file in shards_of(run)}
        new = [name for name in files if name not in self.shards]
        facts = in_threads(lambda name: shard_facts(files[name]), new)
        added = dict(zip(new, facts, strict=True))
        self.shards = {name: self.shards.get(name) or added[name] for name in files}

    def problems(self, run: Run) -> Iterator[Damaged]:
        """Shards that are missing, or whose size is not that of their entry. Reads listings only."""
        view = run.view
        sizes: dict[str, int] = {}
        stems: set[tuple[str, str]] = set()
        for folder in folders(run):
            infos = folder.infos(".parquet")
            sizes.update((info.path, info.size) for info in infos)
            counting = view.newest(Location(folder.fs, info.path) for info in infos)
            stems.update(_key(file.within(run.papers)) for file in counting)
        for name, facts in self.shards.items():
            file = run.papers / name
            if file.path in sizes:
                if sizes[file.path] != facts["bytes"]:
                    yield Damaged(file, f"has {sizes[file.path]} bytes, and {facts['bytes']} were written", cure(run))
            elif _key(name) not in stems:
                yield Damaged(file, f"is missing ({facts['rows']} rows)", cure(run))

    def note_changed(self, dois: list[str]) -> None:
        known = set(self.changed_dois)
        new = [doi for doi in dois if doi not in known]
        self.changed += len(new)
        self.changed_dois = (self.changed_dois + new)[:NAMED]


def cure(run: Run) -> str:
    return f"`qaray status {run.root} --repair` sets it aside, and the next start reads its papers again"


def folders(run: Run) -> tuple[Location, ...]:
    """The folders of the ingest's shards."""
    return run.papers, run.rejected_papers, run.left_out


def shards_of(run: Run) -> list[Location]:
    """The ingest's shards that count."""
    view = run.view
    return [file for folder in folders(run) for file in view.newest(folder.files(".parquet"))]


def inventory_files(run: Run) -> list[Location]:
    """The inventories that count, the latest last."""
    files = [Location(run.root.fs, info.path) for info in run.papers.listing()]
    return run.view.counting(file for file in files if file.name.startswith("_sources.e"))


def shard_facts(file: Location) -> dict[str, Any]:
    """Rows, bytes and hash of a shard."""
    with file.fs.open_input_stream(file.path, compression=None) as stream:
        content = stream.read()
    return {"rows": file.count_rows(), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _key(name: str) -> tuple[str, str]:
    """(folder, stem) of a shard's path within OUT/papers: a later epoch may have written it again."""
    return name.rpartition("/")[0], stem_of(name)
