"""Which checkpoints of a run are whole: Ray Train's account of them, and a copy of it for the case that it is torn.

Ray Train writes the account in place after each checkpoint; a kill in the middle of that leaves half of it. Older
checkpoints are deleted after the writing only, so that those of the copy are still there.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ray.train import Checkpoint, UserCallback

from qaray.config import ConfigError
from qaray.finetune.loop import TRAINING
from qaray.run.storage import Location

ACCOUNT = "checkpoint_manager_snapshot.json"
COPY = "checkpoint_manager_snapshot.copy.json"


def last_checkpoint(place: Location) -> Location:
    """``place`` if it is a checkpoint, else the last whole one in it. Raises ConfigError if there is none."""
    if (place / TRAINING).exists():
        return place
    latest = (_account(place) or {}).get("latest_checkpoint_result") or {}
    name = latest.get("checkpoint_dir_name")
    if not name or not (place / name / TRAINING).exists():
        raise ConfigError(f"no whole checkpoint in {place}")
    return place / name


def mend_account(place: Location) -> None:
    """Puts the copy in the place of a torn account, which Ray Train would stop at; without a copy there is none."""
    try:
        (place / ACCOUNT).read_json()
    except ValueError:
        if (copy := (place / COPY).read_json()) is not None:
            (place / ACCOUNT).write_json(copy)
        else:
            (place / ACCOUNT).remove()


def _account(place: Location) -> dict[str, Any] | None:
    try:
        return (place / ACCOUNT).read_json()
    except ValueError:
        return (place / COPY).read_json()


class AccountKeeper(UserCallback):
    """Copies the account of the folder after each checkpoint. Runs in Ray Train's controller."""

    def __init__(self, place: Location) -> None:
        self.place = place

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        with contextlib.suppress(OSError, ValueError):  # the copy before it will do
            if (account := (self.place / ACCOUNT).read_json()) is not None:
                (self.place / COPY).write_json(account)
