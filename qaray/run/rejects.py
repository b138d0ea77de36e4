"""rejected.jsonl: the records that yield no pairs, with the reason, one JSON object per line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qaray.run.directory import Run
from qaray.run.storage import Location


@contextlib.contextmanager
def rejected_file(folder: Location, name: str = "rejected.jsonl") -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens the file ``name`` of ``folder``; yields a function that writes one row (schema.Rejected).

    The file appears when the context ends, and not at all after an error.
    """
    with (folder / name).write() as stream:

        def write(row: Mapping[str, Any]) -> None:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

        yield write


def write_rejected_records(run: Run) -> None:
    """Writes the rejected records of the ingest alone."""
    with rejected_file(run.root) as reject:
        for row in run.rejected_records():
            reject(row)


def rejection_summary(number: int, first: str) -> str:
    """``2 records were rejected, the first because …``, for a command that can use none."""
    if number == 0:
        return "there are no records"
    return f"1 record was rejected: {first}" if number == 1 else (
        f"{number} records were rejected, the first because {first}"
    )  # fmt: skip
