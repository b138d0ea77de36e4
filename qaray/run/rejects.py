"""rejected.jsonl: the records that yield no pairs, with the reason, one JSON object per line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qaray.run.storage import Location


@contextlib.contextmanager
def rejected_file(folder: Location) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens ``folder``/rejected.jsonl; yields a function that writes one row (schema.Rejected).

    The file appears when the context ends, and not at all after an error.
    """
    with (folder / "rejected.jsonl").write() as stream:

        def write(row: Mapping[str, Any]) -> None:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

        yield write
