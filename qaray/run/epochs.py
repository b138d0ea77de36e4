"""Fencing: every start of a command on a run is an epoch, and what it writes carries the epoch's number.

OUT/epochs/000003.json       claim of epoch 3: its holder. Created exclusively; never changed or removed
OUT/epochs/000003.parquet    the files of earlier epochs that epoch 3 adopted
OUT/…/part-000000.e000003.parquet   a shard that epoch 3 wrote

The holder of the highest claim is the run's driver. An epoch begins to write once it has listed the files that are
there *after* its claim and counted before: it adopts these. A file counts if its epoch is the latest one with a list,
or if that list names it. So what an earlier driver writes after it was superseded counts for no reader, however late it
arrives, and no clock decides.

On a file system, a claim is created by a hard link, which fails if the name exists. On a store of fsspec, by a write
that fails likewise (``If-None-Match`` on S3, ``ifGenerationMatch`` on GCS). pyarrow's own S3 and GCS offer no such
write: there each driver writes a claim with a name of its own and then lists; whoever sees another claim of the same
number withdraws. These stores list what was written before, so that two drivers never both stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from qaray.run.errors import Damaged, RunRefused, Superseded
from qaray.run.storage import Location, NoExclusiveCreate

SHARD_FOLDERS = ("papers", "generations")  # and the tables of scores, whose names end in .parquet
EPOCH = re.compile(r"\.e(\d{6,})\.(?:parquet|json)$")
CLAIM = re.compile(r"(\d{6,})(?:\.\w+)?\.json")
LIST = re.compile(r"(\d{6,})\.parquet")


def epoch_of(name: str) -> int:
    """The epoch in a file's name, 0 if there is none."""
    found = EPOCH.search(name)
    return int(found[1]) if found else 0


def stem_of(name: str) -> str:
    """A shard's number: ``part-000000`` of ``part-000000.e000003.parquet``."""
    return name.rsplit("/", 1)[-1].split(".", 1)[0]


@dataclass(frozen=True)
class Epoch:
    """An epoch as seen by its writer, or by a reader. Picklable."""

    root: Location  # the run directory
    number: int = 0  # 0: of a run that no driver has begun, or whose claims are gone: every file counts
    adopted: frozenset[str] | None = None  # paths within the run; None: every file of an earlier epoch counts

    @classmethod
    def latest(cls, root: Location) -> Epoch:
        """The latest epoch that has begun, for readers."""
        while True:
            begun = max((int(found[1]) for found in map(LIST.fullmatch, _names(root)) if found), default=0)
            if begun == 0:
                return cls(root)
            try:
                return cls(root, begun, _read_list(root, begun))
            except FileNotFoundError:
                continue  # a later epoch has begun meanwhile

    @classmethod
    def claim(cls, root: Location, holder: dict[str, Any]) -> Epoch:
        """Claims the next epoch. Raises RunRefused if another driver claims it at the same moment."""
        number = 1 + (latest_claim(root) or max((epoch_of(file.name) for file in shard_files(root)), default=0))
        folder, content = _folder(root), json.dumps({**holder, "epoch": number}, indent=2).encode() + b"\n"
        try:
            won = (folder / f"{number:06d}.json").create(content)
        except NoExclusiveCreate:
            own = folder / f"{number:06d}.{holder['id']}.json"
            own.write_bytes(content)
            won = latest_claim(root, but=own.name) < number
            if not won:
                own.remove()
        if not won:
            raise RunRefused(f"another driver took {root} at the same moment")
        return cls(root, number)

    def adopt(self, relist: Callable[[str], None] | None = None) -> Epoch:
        """Lists the files of earlier epochs that count from now on; returns the epoch, which may write.

        Raises Damaged if the last list is damaged; with ``relist``, which is told, every file is listed.
        """
        try:
            before = Epoch.latest(self.root)
        except Damaged as damage:
            if relist is None:
                raise
            relist(f"{damage.file} {damage.what}: every file is listed again")
            before = Epoch(self.root, self.number, None)
        files = sorted(file.within(self.root) for file in before.counting(shard_files(self.root)))
        listed = pa.table({"file": pa.array(files, pa.string())})
        (_folder(self.root) / f"{self.number:06d}.parquet").write_table(listed)
        for name in _names(self.root):
            found = LIST.fullmatch(name)
            if found and int(found[1]) < self.number:
                (_folder(self.root) / name).remove()
        return replace(self, adopted=frozenset(files))

    def named(self, stem: str, suffix: str = ".parquet") -> str:
        """The name of a file of this epoch."""
        return f"{stem}.e{self.number:06d}{suffix}"

    def counts(self, file: Location) -> bool:
        """Whether the file counts: it was written by this epoch, or adopted by it."""
        if self.number == 0:
            return True
        written = epoch_of(file.name)
        if written >= self.number:
            return written == self.number
        return self.adopted is None or file.within(self.root) in self.adopted

    def counting(self, files: Iterable[Location]) -> list[Location]:
        return [file for file in files if self.counts(file)]

    def newest(self, files: Iterable[Location]) -> list[Location]:
        """Of the files that count, the last epoch's for each stem, sorted by stem."""
        found: dict[str, Location] = {}
        for file in self.counting(files):
            other = found.get(stem_of(file.name))
            if other is None or epoch_of(other.name) < epoch_of(file.name):
                found[stem_of(file.name)] = file
        return [found[stem] for stem in sorted(found)]

    def check(self) -> None:
        """Raises Superseded if a later epoch was claimed, or if this one's claim is gone."""
        if not self.number:
            return
        latest = latest_claim(self.root)
        if latest > self.number:
            raise Superseded(f"another driver took over {self.root}; this one stops")
        if latest < self.number:
            raise Superseded(f"{self.root} was moved or removed: this driver stops; rerun the command to resume")

    def commit(self, file: Location, write: Callable[[], None]) -> None:
        """Writes a file of this epoch, between two checks. A file that came too late to be adopted is removed.

        Raises Superseded if a later epoch was claimed.
        """
        self.check()
        try:
            write()
        except OSError:
            self.check()  # a later driver has removed what this one was writing
            raise
        try:
            self.check()
        except Superseded:
            later = Epoch.latest(self.root)
            if later.number > self.number and not later.counts(file):
                file.remove()
            raise

    def remove(self, file: Location) -> None:
        """Removes a file of this or an earlier epoch; a later epoch's is left. Raises Superseded."""
        if epoch_of(file.name) <= self.number:
            self.check()
            file.remove()

    def remove_late(self) -> None:
        """Removes files that do not count: of superseded writers, and of stems that were written again."""
        files = list(shard_files(self.root))
        kept = {file.path for file in self.counting(files)}
        for file in files:
            if file.path not in kept:
                self.remove(file)


def shard_files(root: Location) -> Iterator[Location]:
    """Every file of a run that carries an epoch, whether it counts or not."""
    folders = [root / name for name in SHARD_FOLDERS] + root.folders(".parquet") + [_folder(root)]
    for folder in folders:
        for info in folder.listing(recursive=True):
            if info.type == pafs.FileType.File and EPOCH.search(info.path):
                yield Location(root.fs, info.path)


def latest_claim(root: Location, but: str = "") -> int:
    """The highest claimed epoch, 0 if there is none. ``but``: the name of a claim to leave out."""
    names = (info.base_name for info in _folder(root).listing())  # a folder of this name is in the way of a claim
    claims = (CLAIM.fullmatch(name) for name in names if name != but)
    return max((int(found[1]) for found in claims if found), default=0)


def _folder(root: Location) -> Location:
    return root / "epochs"


def _names(root: Location) -> list[str]:
    """The files of the folder of claims and lists."""
    return [info.base_name for info in _folder(root).listing() if info.type == pafs.FileType.File]


def _read_list(root: Location, number: int) -> frozenset[str]:
    file = _folder(root) / f"{number:06d}.parquet"
    try:
        return frozenset(file.read_table(["file"])["file"].to_pylist())
    except Damaged as error:
        raise Damaged(file, error.what, f"`qaray status {root} --repair` lists the files again") from None
