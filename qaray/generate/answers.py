"""The stored answers of a run: reading and merging them, and the next attempt of each window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from qaray.engines.attempts import falls_short
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.errors import Damaged
from qaray.run.storage import Location
from qaray.schema import PARSED_SCHEMA, Parsed, table

Key = tuple[str, int, int]  # (doi, window, attempt)
OnDamage = Callable[[Location, Damaged], None]
MAX_FILES = 32  # answer files per paper shard before they are merged; engines write a few answers per file


def next_owed(answers: list[Parsed], max_attempts: int) -> int | None:
    """The number of the window's next attempt, from 1; None if it has its pairs, failed, or used up its attempts."""
    if any(answer["reason"] is not None or not falls_short(answer) for answer in answers):
        return None
    attempt = max((answer["attempt"] for answer in answers), default=0) + 1
    return attempt if attempt <= max_attempts else None


def best_answers(answers: list[Parsed]) -> list[Parsed]:
    """The best attempt of each window (most pairs, then the earliest), in window order."""
    best: dict[int, Parsed] = {}
    for answer in sorted(answers, key=lambda a: (a["window"], -len(a["pairs"]), a["attempt"])):
        best.setdefault(answer["window"], answer)
    return list(best.values())


def read_answers(
    fs: Any, paths: list[str], columns: list[str] | None = None, damaged: OnDamage | None = None
) -> dict[str, list[Parsed]]:
    """Rows of generation shards by doi, without duplicates of the key (doi, window, attempt).

    ``damaged`` gets the files that cannot be read; without it, raises Damaged.
    """
    rows: dict[str, list[Parsed]] = defaultdict(list)
    seen: set[Key] = set()
    for path in paths:
        file = Location(fs, path)
        try:
            found = file.read_table(columns or PARSED_SCHEMA.names)
        except FileNotFoundError:
            continue  # merged into another since it was listed; answers that are missed are found missing
        except Damaged as damage:
            if damaged is None:
                raise Damaged(file, damage.what, "rerun `qaray generate`, which makes its answers again") from None
            damaged(file, damage)
            continue
        for row in found.to_pylist():
            key = (row["doi"], row["window"], row["attempt"])
            if key not in seen:
                seen.add(key)
                rows[row["doi"]].append(row)
    return dict(rows)


def merge_answers(run: Run, shard: str, paths: list[str]) -> list[str]:
    """Merges a shard's answer files into one if there are more than MAX_FILES; returns the paths of its answers.

    10⁷ papers at 4 answers per file would leave 2.5 million files. The merged file is complete before the others are
    removed, and readers drop duplicate keys: a task that dies in between neither loses nor duplicates an answer.
    """
    if len(paths) <= MAX_FILES:
        return paths
    # An earlier attempt of this task may have died after removing some files.
    paths = [path for path in paths if Location(run.root.fs, path).exists()]
    rows = [row for own in read_answers(run.root.fs, paths).values() for row in own]
    merged = run.generation_file(shard, sorted((row["doi"], row["window"], row["attempt"]) for row in rows))
    run.view.commit(merged, partial(merged.write_table, table(rows, PARSED_SCHEMA)))
    for path in paths:
        if path != merged.path:
            run.view.remove(Location(run.root.fs, path))
    return [merged.path]


def drop_answers(run: Run, paths: list[str], dois: set[str]) -> None:
    """Removes the answers of these papers."""
    for path in paths:
        file = Location(run.root.fs, path)
        rows = file.read_table()
        kept = rows.filter(pa.array([doi not in dois for doi in rows["doi"].to_pylist()], pa.bool_()))
        if kept.num_rows == rows.num_rows:
            continue
        if kept.num_rows:
            keys = zip(*(kept[name].to_pylist() for name in ("doi", "window", "attempt")), strict=True)
            rest = run.generation_file(stem_of(file.name), sorted(keys))
            run.view.commit(rest, partial(rest.write_table, kept))
        run.view.remove(file)


def by_doi(rows: list[Parsed]) -> dict[str, list[Parsed]]:
    """Rows grouped by paper."""
    papers: dict[str, list[Parsed]] = defaultdict(list)
    for row in rows:
        papers[row["doi"]].append(row)
    return papers


def by_window(answers: list[Parsed]) -> dict[int, list[Parsed]]:
    """Answers grouped by window."""
    windows: dict[int, list[Parsed]] = defaultdict(list)
    for answer in answers:
        windows[answer["window"]].append(answer)
    return dict(windows)
