"""The run directory: its layout, and the identity of a run.

OUT/run.json      written first         OUT/lease.json     while a driver is alive
OUT/papers/       shards of papers      OUT/stop           while a stop is requested
OUT/generations/  shards of answers     OUT/manifest.json  written last
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qaray.run.storage import Location

SHARD = "part-{:06d}"
FORMAT = 2  # version of the layout: files and their columns
THE_RUN = "the run itself"  # source of the pairs of an evaluation, unless they were imported from a file


class RunError(RuntimeError):
    """The run cannot start or continue. The message is one line for the user."""


class RunRefused(RunError):
    """The run belongs to another driver or has other settings. Nothing was changed."""


@dataclass(frozen=True)
class Run:
    """A run directory. Picklable."""

    root: Location

    @classmethod
    def at(cls, output_dir: str) -> Run:
        return cls(Location.of(output_dir))

    @property
    def papers(self) -> Location:
        return self.root / "papers"

    @property
    def rejected_papers(self) -> Location:
        """Rejected records of the ingest. Parquet readers of ``papers`` skip it because of the underscore."""
        return self.papers / "_rejected"

    @property
    def sources(self) -> Location:
        """The ingested input files: one entry per file, ``complete`` if it was read to its end."""
        return self.papers / "_sources.json"

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
        stored = self._stored_identity() or {}
        parts = (stored, stored.get("similarity") or {}, stored.get("racar") or {})
        return next((part["engine"] for part in parts if "engine" in part), None)

    @property
    def evaluation(self) -> Run:
        """The evaluation of this run's pairs: a run directory within this one."""
        return Run(self.root / "evaluation")

    def measured(self) -> dict[str, Any] | None:
        """Manifest of this run's evaluation; None if there is none, or if it evaluated imported pairs."""
        manifest = self.evaluation.manifest.read_json()
        return manifest if manifest and manifest["pairs_of"] == THE_RUN else None

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
        """Names of the paper shards, in order; generation and score shards are named after them."""
        return [shard.name.removesuffix(".parquet") for shard in self.paper_shards()]

    @property
    def left_out(self) -> Location:
        """Shards of the optional fields that the ingest left out."""
        return self.papers / "_left_out"

    def rejected_records(self) -> Iterator[dict[str, Any]]:
        """Yields the rejected rows of the ingest, with one shard in memory at a time."""
        for shard in self.rejected_papers.files(".parquet"):
            yield from shard.read_table().to_pylist()

    def paper_shards(self) -> list[Location]:
        return self.papers.files(".parquet")

    def generation_files(self) -> dict[str, list[str]]:
        """Paths of the generation shards of each paper shard."""
        files: dict[str, list[str]] = defaultdict(list)
        for file in self.generations.files(".parquet"):
            files[file.name.split(".", 1)[0]].append(file.path)
        return dict(files)

    def generation_file(self, shard: str, keys: list[tuple[str, int, int]]) -> Location:
        """The file for the answers of these (doi, window, attempt) keys.

        The same keys give the same file, so that a task that runs twice overwrites its first output.
        """
        digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]
        return self.generations / f"{shard}.{digest}.parquet"

    def size(self) -> int:
        """Total size of the run's shards and exports, in bytes."""
        files = [*self.papers.infos(), *self.generations.infos(), *self.root.infos()]
        return sum(info.size or 0 for info in files)

    def identify(self, identity: dict[str, Any]) -> None:
        """Writes run.json, or checks that it matches. Raises RunRefused with the differences."""
        stored = self._stored_identity()
        record = {"format": FORMAT, **identity, "hash": identity_hash(identity)}
        if stored is None:
            self.root.make_folder()
            self.identity.write_json(record)
            return
        if stored.get("hash") == record["hash"]:
            return
        changes = differences({**stored, "hash": None}, {**record, "hash": None})
        raise RunRefused(
            f"{self.root} was started with other settings ({changes}): use the same settings or another --output_dir"
        )

    def has_identity(self, identity: dict[str, Any]) -> bool:
        """Whether the run was started with these settings. Raises like ``identify`` if run.json cannot be used."""
        return (self._stored_identity() or {}).get("hash") == identity_hash(identity)

    def identify_parts(self, parts: dict[str, dict[str, Any]]) -> None:
        """Like ``identify``, for a start that names only some parts of the identity.

        Parts that are already in run.json must match; new parts are added. Raises RunRefused with the differences.
        """
        stored = self._stored_identity() or {"format": FORMAT}
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
            self.root.make_folder()
            self.identity.write_json({**merged, "hash": identity_hash(merged)})

    def finished(self) -> dict[str, Any]:
        """The manifest of the finished run. Raises RunRefused if there is none."""
        manifest = self.manifest.read_json()
        if manifest is None and not self.identity.exists():
            raise RunRefused(f"{self.root} is not a run directory: pass the --output_dir of a finished run")
        if manifest is None:
            raise RunRefused(
                f"{self.root} has no finished run (manifest.json is missing): rerun the command that started it"
            )
        self._stored_identity()
        return manifest

    def _stored_identity(self) -> dict[str, Any] | None:
        """Content of run.json, None if there is none. Raises RunRefused if another release wrote the directory."""
        try:
            stored = self.identity.read_json()
        except ValueError as error:
            raise RunError(f"{error}: remove it to start the run again") from None
        if stored is not None and (written := stored.get("format", 1)) != FORMAT:
            raise RunRefused(
                f"{self.root} was written by an earlier release (layout {written}, expected {FORMAT}): finish the run "
                "with that release and pass its processed_output.json to --processed_output, or use another "
                "--output_dir"
            )
        return stored

    def clean(self) -> None:
        """Removes temporary files of killed writers. Only the holder of the lease may call it."""
        report = self.root / "report"
        for folder in (
            self.root, self.papers, self.rejected_papers, self.left_out, self.generations, report, report / "papers",
        ):  # fmt: skip
            folder.remove_temporary()
        for scores in self.root.folders(".parquet"):
            scores.remove_temporary(recursive=True)


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
