"""Input files: which ones a run reads, and whether they changed.

A file is fingerprinted before it is read and after: what was appended or replaced meanwhile is read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

from qaray.corpus.readers.dispatch import data_files
from qaray.run.directory import Run
from qaray.run.storage import Location, in_threads, patient

ENDS = 1 << 16  # bytes of a file's beginning and of its end that are hashed for its fingerprint
CHUNK = 1 << 22


def input_files(pattern: str, run: Run) -> list[Location]:
    """The files to read: none of the run's own, and in a folder or glob none of another run.

    Links are followed. Raises FileNotFoundError if there is none, ConfigError if the only one is of another format.
    """
    found = data_files(pattern)
    one = len(found) == 1 and found[0].path == Location.of(pattern).path
    runs: dict[str, bool] = {}
    root = _real(run.root)
    files = []
    for file in found:
        real = _real(file)
        if not _within(real, root) and (one or not _in_a_run(file.fs, os.path.dirname(real), runs)):
            files.append(file)
    if not files:
        raise FileNotFoundError(f"no input file: {pattern} contains only files of the run itself or of other runs")
    return files


def _real(place: Location) -> str:
    """The path without links."""
    return os.path.realpath(place.path) if place.is_local else place.path.rstrip("/")


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _in_a_run(fs: Any, folder: str, known: dict[str, bool]) -> bool:
    """Whether the folder is in a run directory. ``known`` has the folders that were looked at."""
    if folder not in known:
        parent = os.path.dirname(folder)
        above = parent not in ("", folder) and _in_a_run(fs, parent, known)
        known[folder] = above or _is_run(Location(fs, folder))
    return known[folder]


def _is_run(folder: Location) -> bool:
    """Whether the folder has a run.json of ours, and what a start of a run writes beside it."""
    return (folder / "epochs" / "run.json").exists() or (
        (folder / "run.json").exists() and (folder / "papers").exists()
    )


def unread(files: list[Location], known: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[Location]:
    """The files that have not been read to their end, or have changed since.

    Args:
        files: The input files.
        known: Entries of the inventory.
        found: The files' fingerprints.

    A moved file is recognized by its name and content, if its earlier place is not among the inputs.
    """
    complete = [entry for entry in known if entry["complete"]]
    in_place = {entry["file"]: entry for entry in complete}
    here = {file.path for file in files}
    moved = {(entry["size"], entry["digest"]): entry for entry in complete if entry["file"] not in here}
    fresh = []
    for file, now in zip(files, found, strict=True):
        before = in_place.get(file.path)
        if before is not None:
            same = _same(before, now)
        else:
            other = moved.get((now["size"], now["digest"]))
            same = (
                other is not None
                and other["file"].rsplit("/", 1)[-1] == file.name
                and content_hash(file) == other.get("sha256")
            )
        if not same:
            fresh.append(file)
    return fresh


def _same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(before.get(name) == now[name] for name in ("size", "modified_ns", "digest"))


def unchanged(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any] | None]) -> list[bool]:
    """Whether each file is what it was before it was read."""
    return [now is not None and _same(then, now) for then, now in zip(before, after, strict=True)]


def fingerprints(files: list[Location]) -> list[dict[str, Any]]:
    """A fingerprint of each file. Raises FileNotFoundError."""
    return list(in_threads(fingerprint, files))


@patient
def fingerprint(file: Location) -> dict[str, Any]:
    """Identifies a file: path, size, modification time, and a hash of its first and last 64 KiB."""
    info = file.info()
    size = info.size or 0
    with file.fs.open_input_file(file.path) as stream:
        head = stream.read(ENDS)
        stream.seek(max(0, size - ENDS))
        digest = hashlib.sha256(head + stream.read(ENDS)).hexdigest()[:16]
    return {"file": file.path, "size": size, "modified_ns": info.mtime_ns, "digest": digest}


def read_entry(file: Location) -> dict[str, Any] | None:
    """Fingerprint and hash of a file that was read; None if it is gone, or changes while it is hashed."""
    try:
        before = fingerprint(file)
        entry = {**before, "sha256": content_hash(file)}
        return entry if _same(before, fingerprint(file)) else None
    except FileNotFoundError:
        return None


@patient
def content_hash(file: Location) -> str:
    """SHA-256 of the whole file."""
    found = hashlib.sha256()
    with file.fs.open_input_stream(file.path, compression=None) as stream:
        while chunk := stream.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()
