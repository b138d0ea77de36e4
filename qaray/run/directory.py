"""The run directory: its layout, and the identity of a run.

OUT/run.json      written first         OUT/lease.json     while a driver is alive
OUT/papers/       shards of papers      OUT/stop           while a stop is requested
OUT/generations/  shards of answers     OUT/manifest.json  written last
OUT/epochs/       a claim per start, and which files count: see qaray.run.epochs
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from qaray.run.epochs import Epoch, epoch_of, stem_of
from qaray.run.errors import Damaged, RunRefused
from qaray.run.storage import Location, NotJson

SHARD = "part-{:06d}"
FORMAT = 3  # version of the layout: files and their columns
CURE = "restore it from a copy, or use another --output_dir"
BEFORE_IDENTITY = frozenset({"lease.json", "epochs", "stop", "tries"})  # what a run has before its run.json
BESIDE_EVALUATION = BEFORE_IDENTITY | {"evaluation", "report"}  # and the evaluation of a processed output
THE_RUN = "the run itself"  # source of the pairs of an evaluation, unless they were imported from a file


@dataclass(frozen=True)
class Run:
    """A run directory, as the driver of an epoch or a reader sees it. Picklable."""

    root: Location
    epoch: Epoch | None = None  # None: the latest one, whenever files are listed

    @classmethod
    def at(cls, output_dir: str) -> Run:
        return cls(Location.of(output_dir))

    @property
    def view(self) -> Epoch:
        """Decides which files count."""
        return self.epoch or Epoch.latest(self.root)

    def pinned(self) -> Run:
        """The run as it is seen at this moment: what counts is listed once."""
        return replace(self, epoch=self.view)

    def write_shard(self, folder: Location, stem: str, rows: pa.Table) -> Location:
        """Writes a Parquet file of this epoch; returns it. Raises Superseded if a later epoch was claimed."""
        file = folder / self.view.named(stem)
        self.view.commit(file, lambda: file.write_table(rows))
        return file

    def replace_shard(self, file: Location, rows: pa.Table) -> None:
        """Writes a shard again, or removes it if there are no rows."""
        if rows.num_rows:
            new = self.write_shard(Location(file.fs, file.path.rsplit("/", 1)[0]), stem_of(file.name), rows)
            if new.path == file.path:
                return
        self.view.remove(file)

    @property
    def papers(self) -> Location:
        return self.root / "papers"

    @property
    def rejected_papers(self) -> Location:
        """Rejected records of the ingest. Parquet readers of ``papers`` skip it because of the underscore."""
        return self.papers / "_rejected"

    @property
    def records(self) -> Location:
        """Folder of what a run knows about itself: claims, lists, copies of run.json and manifest.json."""
        return self.root / "epochs"

    @property
    def generations(self) -> Location:
        return self.root / "generations"

    @property
    def manifest(self) -> Location:
        return self.root / "manifest.json"

    @property
    def identity(self) -> Location:
        return self.root / "run.json"

    @property
    def engine(self) -> str | None:
        """The engine recorded in run.json, None if there is none yet."""
        stored = self.stored_identity() or {}
        parts = (stored, stored.get("similarity") or {}, stored.get("racar") or {})
        return next((part["engine"] for part in parts if "engine" in part), None)

    @property
    def evaluation(self) -> Run:
        """The evaluation of this run's pairs: a run directory within this one."""
        return Run(self.root / "evaluation")

    def measured(self) -> dict[str, Any] | None:
        """Manifest of this run's evaluation; None if there is none, or if it evaluated imported pairs."""
        manifest = self.evaluation.read_manifest()
        return manifest if manifest and manifest.get("pairs_of") == THE_RUN else None

    @property
    def summary(self) -> Location:
        return self.root / "summary.json"

    @property
    def training_log(self) -> Location:
        """Log of a fine-tuning, updated during training."""
        return self.root / "training.json"

    @property
    def stop_flag(self) -> Location:
        return self.root / "stop"

    def shard_names(self) -> list[str]:
        """Names of the paper shards, in order: their files without the suffix."""
        return [shard.name.removesuffix(".parquet") for shard in self.paper_shards()]

    @property
    def left_out(self) -> Location:
        """Shards of the optional fields that the ingest left out."""
        return self.papers / "_left_out"

    def rejected_records(self) -> Iterator[dict[str, Any]]:
        """Yields the rejected rows of the ingest, with one shard in memory at a time."""
        for shard in self.rejected_shards():
            yield from shard.read_table().to_pylist()

    def paper_shards(self) -> list[Location]:
        return self.view.newest(self.papers.files(".parquet"))

    def rejected_shards(self) -> list[Location]:
        return self.view.newest(self.rejected_papers.files(".parquet"))

    def left_out_shards(self) -> list[Location]:
        return self.view.newest(self.left_out.files(".parquet"))

    def generation_files(self) -> dict[str, list[str]]:
        """Paths of the generation shards that count, by the stem of their paper shard."""
        files: dict[str, list[str]] = defaultdict(list)
        for file in self.view.counting(self.generations.files(".parquet")):
            files[stem_of(file.name)].append(file.path)
        return dict(files)

    def generation_file(self, shard: str, keys: list[tuple[str, int, int]]) -> Location:
        """The file of this epoch for the answers of these (doi, window, attempt) keys.

        The same keys give the same file, so that a task that runs twice overwrites its first output.
        """
        digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]
        return self.generations / self.view.named(f"{stem_of(shard)}.{digest}")

    def size(self) -> int:
        """Total size of the run's shards and exports, in bytes."""
        files = [*self.papers.infos(), *self.generations.infos(), *self.root.infos()]
        return sum(info.size or 0 for info in files)

    def identify(self, identity: dict[str, Any]) -> None:
        """Writes run.json, or checks that it matches. Raises RunRefused with the differences."""
        stored = self.stored_identity()
        record = {"format": FORMAT, **identity, "hash": identity_hash(identity)}
        if stored is None:
            self._write_identity(record)
            return
        if stored.get("hash") == record["hash"]:
            return
        changes = differences({**stored, "hash": None}, {**record, "hash": None})
        raise RunRefused(
            f"{self.root} was started with other settings ({changes}): use the same settings or another --output_dir"
        )

    def _write_identity(self, record: dict[str, Any]) -> None:
        self.view.check()
        self.root.make_folder()
        self.records_identity.write_json(record)
        self.identity.write_json(record)

    @property
    def records_identity(self) -> Location:
        """Copy of run.json, from which it is restored."""
        return self.records / "run.json"

    def replace_identity(self, identity: dict[str, Any]) -> None:
        """Writes run.json for other settings. The caller has made sure that nothing depends on the earlier ones."""
        self._write_identity({"format": FORMAT, **identity, "hash": identity_hash(identity)})

    def refuse_foreign(self) -> None:
        """Raises RunRefused if the folder has content, and no run.json that says that it is a run."""
        if self.root.info().type == pafs.FileType.File:
            raise RunRefused(f"{self.root} is a file: pass a folder as --output_dir")
        names = [info.base_name for info in self.root.listing() if not info.base_name.startswith(".")]
        foreign = [name for name in names if name not in BEFORE_IDENTITY]
        if not foreign or self.stored_identity() is not None:
            return
        if set(foreign) <= BESIDE_EVALUATION and self.evaluation.identity.exists():
            return
        raise RunRefused(
            f"{self.root} is not empty, and has no run.json that says that it is a run of qaray (it has "
            f"{', '.join(foreign[:5])}{', …' if len(foreign) > 5 else ''}): use another --output_dir"
        )

    def refuse_foreign_report(self) -> None:
        """Raises RunRefused if the folder's report/ is not one of ours."""
        ours = self.stored_identity() is not None or self.evaluation.identity.exists()
        if not ours and (self.root / "report").exists():
            raise RunRefused(f"{self.root}/report is not a report of qaray: use another --output_dir")

    def has_identity(self, identity: dict[str, Any]) -> bool:
        """Whether the run was started with these settings. Raises like ``identify`` if run.json cannot be used."""
        return (self.stored_identity() or {}).get("hash") == identity_hash(identity)

    def identify_parts(self, parts: dict[str, dict[str, Any]]) -> None:
        """Like ``identify``, for a start that names only some parts of the identity.

        Parts that are already in run.json must match; new parts are added. Raises RunRefused with the differences.
        """
        stored = self.stored_identity() or {"format": FORMAT}
        stored.pop("hash", None)
        for part, wanted in parts.items():
            known = stored.get(part, wanted)
            changes = differences(known, wanted)
            if changes:
                raise RunRefused(
                    f"{self.root} has {part} scores with other settings ({changes}): remove that folder or use the "
                    "same settings"
                )
        merged = {**stored, **parts}
        if merged != stored:
            self._write_identity({**merged, "hash": identity_hash(merged)})

    def finished(self) -> dict[str, Any]:
        """The manifest of the finished run. Raises RunRefused if there is none."""
        manifest = self.read_manifest()
        if manifest is None and self.stored_identity() is None:
            raise RunRefused(f"{self.root} is not a run directory: pass the --output_dir of a finished run")
        if manifest is None:
            raise RunRefused(
                f"{self.root} has no finished run (manifest.json is missing): rerun the command that started it"
            )
        self.stored_identity()
        return manifest

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest of the finished run, None if it is not finished.

        Its copy in ``records`` decides: a manifest.json that a superseded driver wrote, or removed, has no say. Raises
        Damaged if the copy is damaged and manifest.json is not of its epoch.
        """
        copies = self._manifest_copies()
        if not copies:
            return None if self.view.number else _object(self.manifest)
        try:
            return _object(copies[-1])
        except Damaged:
            manifest = _readable(self.manifest)
            if manifest is None or manifest.get("epoch") != epoch_of(copies[-1].name):
                raise
            return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Writes the manifest, which says that the run is finished. Raises Superseded."""
        view = self.view
        record = {**manifest, "epoch": view.number}
        copy = self.records / view.named("manifest", ".json")
        view.commit(copy, lambda: copy.write_json(record))
        view.check()
        self.manifest.write_json(record)
        view.check()
        for old in self._manifest_copies()[:-1]:
            view.remove(old)

    def unfinish(self) -> None:
        """Removes the manifest: there is work to do again."""
        for copy in self._manifest_copies():
            self.view.remove(copy)
        self.view.check()
        self.manifest.remove()

    def restore(self) -> list[str]:
        """Restores run.json and manifest.json from their copies, if they are missing or differ; returns their names.

        A manifest that is damaged, or that no copy vouches for, is removed: a finished run writes it again.
        """
        restored = []
        try:
            manifest = self.read_manifest()
        except Damaged:
            for copy in self._manifest_copies():
                self.view.remove(copy)
            manifest = None
        if manifest is None and self.manifest.exists():
            self.view.check()
            self.manifest.remove()
            restored.append(self.manifest.name)
        for file, known in ((self.identity, self.stored_identity()), (self.manifest, manifest)):
            if known is not None and _readable(file) != known:
                self.view.check()
                file.write_json(known)
                restored.append(file.name)
        return restored

    def _manifest_copies(self) -> list[Location]:
        files = [Location(self.root.fs, info.path) for info in self.records.listing()]
        copies = [file for file in files if stem_of(file.name) == "manifest" and file.name.endswith(".json")]
        return self.view.counting(copies)

    def stored_identity(self) -> dict[str, Any] | None:
        """Content of run.json, None if there is none.

        Its copy replaces one that is missing or damaged. Raises RunRefused if another release wrote the directory,
        Damaged if there is no copy.
        """
        copy = _readable(self.records_identity)
        try:
            stored = _object(self.identity)
            if stored is not None and stored.get("format", 1) == FORMAT and not _is_whole(stored):
                raise Damaged(self.identity, "is damaged (its hash is not that of its settings)", CURE)
        except Damaged:
            if copy is None:
                raise
            stored = copy
        stored = stored or copy
        if stored is not None and (written := stored.get("format", 1)) != FORMAT:
            raise RunRefused(
                f"{self.root} was written by an earlier release (layout {written}, expected {FORMAT}): finish the run "
                "with that release and pass its processed_output.json to --processed_output, or use another "
                "--output_dir"
            )
        return stored

    def clean(self) -> None:
        """Removes what killed and superseded writers left. Only the holder of the lease may call it."""
        self.view.check()
        report = self.root / "report"
        for folder in (
            self.root, self.papers, self.rejected_papers, self.left_out, self.generations, self.records,
            report, report / "papers",
        ):  # fmt: skip
            folder.remove_temporary()
        self.view.remove_late()
        for scores in self.root.folders(".parquet"):
            scores.remove_temporary(recursive=True)


def _object(file: Location) -> dict[str, Any] | None:
    """The JSON object in a file, None if there is no file. Raises Damaged."""
    try:
        value = file.read_json()
    except NotJson as error:
        raise Damaged(file, f"is damaged ({error.why})", CURE) from None
    if value is not None and not isinstance(value, dict):
        raise Damaged(file, f"is damaged (an object is expected, not {str(value)[:40]!r})", CURE)
    return value


def _is_whole(identity: dict[str, Any]) -> bool:
    settings = {name: value for name, value in identity.items() if name != "hash"}
    bare = {name: value for name, value in settings.items() if name != "format"}
    return identity.get("hash") in (identity_hash(bare), identity_hash(settings))


def _readable(file: Location) -> dict[str, Any] | None:
    """Like ``_object``, None for a damaged file."""
    try:
        return _object(file)
    except Damaged:
        return None


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Describes the differences between two identities; '' if there are none."""
    names = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    return "; ".join(f"{k}: {stored.get(k)!r} in the run, {wanted.get(k)!r} asked for" for k in names)


def logged_steps(log: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a training log that record an optimizer step."""
    return [entry for entry in log["log"] if "loss" in entry]


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
