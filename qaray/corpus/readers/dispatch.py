"""Reads the records of an input file of any supported format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qaray.corpus.readers.json_lines import json_lines
from qaray.corpus.readers.json_list import json_values
from qaray.corpus.readers.parquet import parquet_rows
from qaray.corpus.records import FIELDS, Record
from qaray.run.storage import Location

SUFFIXES = tuple(
    ending + packed for ending in (".json", ".jsonl", ".ndjson", ".parquet") for packed in ("", ".gz", ".zst", ".bz2")
)


def read_records(file: Location, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Yields the file's records in order. Invalid content raises nothing; it becomes a Record with a problem.

    ``columns`` are the columns to read from a Parquet file; None reads the fields of a paper with pairs.
    """
    name = file.path.lower()
    if ".parquet" in name.rsplit("/", 1)[-1]:
        return parquet_rows(file, FIELDS if columns is None else columns)
    if any(ending in name.rsplit("/", 1)[-1] for ending in (".jsonl", ".ndjson")):
        return json_lines(file)
    return json_values(file)
