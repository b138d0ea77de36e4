"""The last complete checkpoint of a run, by Ray Train's checkpoint index or, if that is damaged, by a pointer file.

Ray Train writes its index in place after each checkpoint; a kill during the write truncates it, and Ray Train then
fails to read it. The pointer is written after the index, atomically. A folder with a damaged index is set aside, and
training resumes from the checkpoint that the pointer names. Folders that were set aside are never deleted here.

    STORAGE/RUN_NAME/                checkpoints and Ray Train's index
    STORAGE/RUN_NAME.latest.json     the pointer
    STORAGE/RUN_NAME.set-aside-1/    a folder with a damaged index
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from ray.train import Checkpoint, Result, UserCallback

from qaray.config import ConfigError
from qaray.finetune.loop import TRAINING
from qaray.run.cluster import debugging
from qaray.run.errors import RunError
from qaray.run.storage import Location


class DamagedIndex(Exception):
    """Ray Train's checkpoint index of a folder exists but cannot be read."""


def last_checkpoint(place: Location) -> Location:
    """``place`` if it is a checkpoint, else the last complete one of a run. Raises ConfigError if there is none."""
    if (place / TRAINING).exists():
        return place
    with contextlib.suppress(DamagedIndex):
        if (found := _reported(place)) is not None:
            return found
    if (found := _pointed(place)) is None:
        if not place.exists():
            raise ConfigError(f"no such folder: {place}")
        raise ConfigError(f"no complete checkpoint in {place}: pass the --run_name folder of a run that has saved one")
    return found


def resume_point(place: Location, notify: Callable[[str], None]) -> Location | None:
    """The checkpoint to pass to the training processes; None if Ray Train finds it itself, or if there is none.

    A folder with a damaged index is set aside, and Ray Train starts a new one. Raises RunError if the storage cannot
    rename folders.
    """
    try:
        return _pointed(place) if _reported(place) is None else None
    except DamagedIndex as torn:
        if not place.is_local:
            raise RunError(f"{place}: {torn}: remove that folder or use another --run_name") from torn
    aside = _set_aside(place, 1 + len(_asides(place)))
    os.rename(place.path, aside.path)
    found = _pointed(place)
    where = f"training resumes from {found}" if found else "no complete checkpoint is known, and training starts over"
    notify(f"Ray Train's checkpoint index was damaged by a kill and moved to {aside}; {where}")
    return found


class CheckpointPointer(UserCallback):
    """Updates the pointer after each complete checkpoint. Runs in Ray Train's controller."""

    def __init__(self, place: Location) -> None:
        self.place = place

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            with contextlib.suppress(OSError):  # the previous pointer remains valid
                pointer(self.place).write_json({"checkpoint": _name(checkpoint)})


def pointer(place: Location) -> Location:
    """The file that names the last complete checkpoint of a run's folder."""
    return Location(place.fs, f"{place.path.rstrip('/')}.latest.json")


def _reported(place: Location) -> Location | None:
    """The last checkpoint in Ray Train's index, None without an index. Raises DamagedIndex or OSError."""
    if not debugging():
        logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        checkpoint = Result.from_path(place.path, storage_filesystem=place.fs).checkpoint
    except (RuntimeError, FileNotFoundError):
        return None  # no folder, or no index in it
    except OSError:
        raise
    except Exception as error:  # Ray's error for an unreadable index is private
        raise DamagedIndex(f"Ray Train cannot read its checkpoint index ({type(error).__name__})") from error
    found = place / _name(checkpoint) if checkpoint else None
    return found if found and (found / TRAINING).exists() else None


def _pointed(place: Location) -> Location | None:
    """The checkpoint that the pointer names, in the run's folder or the latest set-aside folder that holds it."""
    try:
        name = (pointer(place).read_json() or {}).get("checkpoint")
    except ValueError:
        return None
    places = [folder / name for folder in (place, *reversed(_asides(place)))] if name else []
    return next((each for each in places if (each / TRAINING).exists()), None)


def _asides(place: Location) -> list[Location]:
    """The folders that were set aside, oldest first."""
    found: list[Location] = []
    while (aside := _set_aside(place, len(found) + 1)).exists():
        found.append(aside)
    return found


def _set_aside(place: Location, number: int) -> Location:
    return Location(place.fs, f"{place.path.rstrip('/')}.set-aside-{number}")


def _name(checkpoint: Checkpoint) -> str:
    return str(checkpoint.path).rstrip("/").rsplit("/", 1)[-1]
