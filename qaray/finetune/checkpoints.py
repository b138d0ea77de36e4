"""The last complete checkpoint of a run: Ray Train's account of them, and a pointer of our own in case that is torn.

Ray Train writes its account in place after each checkpoint; a kill in the middle of that leaves half of it, and Ray
Train stops at it. The pointer is written after the account, whole or not at all. A folder with a torn account is set
aside, and training resumes from the checkpoint that the pointer names.

    STORAGE/RUN_NAME/                checkpoints and Ray Train's account
    STORAGE/RUN_NAME.latest.json     the pointer
    STORAGE/RUN_NAME.set-aside/      a folder whose account was torn
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from ray.train import Checkpoint, Result, UserCallback

from qaray.config import ConfigError
from qaray.finetune.loop import TRAINING
from qaray.run.storage import Location


def last_checkpoint(place: Location) -> Location:
    """``place`` if it is a checkpoint, else the last complete one of a run's folder. Raises ConfigError without one."""
    if (place / TRAINING).exists():
        return place
    found = _reported(place) or _pointed(place)
    if found is None:
        raise ConfigError(f"no whole checkpoint in {place}")
    return found


def resume_point(place: Location) -> Location | None:
    """The checkpoint that training must be told to resume from; None if Ray Train finds it, or if there is none.

    A folder whose account is torn is set aside: Ray Train starts a new one.
    """
    if _reported(place) is not None or (found := _pointed(place)) is None:
        return None
    if found.path.startswith(place.path + "/"):
        forget_set_aside(place)
        os.rename(place.path, _set_aside(place).path)  # a torn file: this is a local disk
        return _pointed(place)
    return found


def forget_set_aside(place: Location) -> None:
    """Removes what was set aside; the run has newer checkpoints, or is finished."""
    _set_aside(place).remove_folder()


class CheckpointPointer(UserCallback):
    """Notes each complete checkpoint of the folder. Runs in Ray Train's controller."""

    def __init__(self, place: Location) -> None:
        self.place = place

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            with contextlib.suppress(OSError):  # the pointer before it will do
                _pointer(self.place).write_json({"checkpoint": _name(checkpoint)})


def _reported(place: Location) -> Location | None:
    """The last checkpoint by Ray Train's account, None if that is missing or torn."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        checkpoint = Result.from_path(place.path, storage_filesystem=place.fs).checkpoint
    except Exception:  # no account, or half of one: Ray's error for that is private
        return None
    found = place / _name(checkpoint) if checkpoint else None
    return found if found and (found / TRAINING).exists() else None


def _pointed(place: Location) -> Location | None:
    """The checkpoint that the pointer names, in the run's folder or in the one set aside."""
    try:
        name = (_pointer(place).read_json() or {}).get("checkpoint")
    except ValueError:
        return None
    places = [folder / name for folder in (place, _set_aside(place))] if name else []
    return next((each for each in places if (each / TRAINING).exists()), None)


def _pointer(place: Location) -> Location:
    return Location(place.fs, f"{place.path.rstrip('/')}.latest.json")


def _set_aside(place: Location) -> Location:
    return Location(place.fs, f"{place.path.rstrip('/')}.set-aside")


def _name(checkpoint: Checkpoint) -> str:
    return str(checkpoint.path).rstrip("/").rsplit("/", 1)[-1]
