"""Parquet: one record per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qaray.corpus.explain import Unreadable
from qaray.corpus.readers import limits
from qaray.corpus.records import Problem, Record
from qaray.run.storage import Location, StoreFailed
from qaray.schema import RejectReason

ROWS = 8  # rows decoded at a time: each may be as long as a record may be
BUFFER = 1 << 20  # bytes read at a time of a column: else all of a row group is held


def parquet_rows(file: Location, fields: Sequence[str]) -> Iterator[Record]:
    """Yields the rows of a Parquet file as records, with those of the ``fields`` that it has. Raises StoreFailed.

    Other columns are not read: a record has their names, for messages, with None for the value. A damaged row group,
    or one with rows beyond the limit, is one record with a problem.
    """
    position = 0
    try:
        with file.open_raw() as stream:
            parquet = pq.ParquetFile(stream, buffer_size=BUFFER)
            names = parquet.schema_arrow.names
            columns = [name for name in dict.fromkeys(fields) if name in names]
            unread = dict.fromkeys(name for name in names if name not in columns)
            for group in range(parquet.num_row_groups):
                first = position
                for record in _group_rows(parquet, group, columns, unread, position):
                    yield record
                    position = record.position + 1
                position = max(position, first + parquet.metadata.row_group(group).num_rows)
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        yield Record(position, problem=_unreadable("the Parquet file cannot be read", error))


def _group_rows(
    parquet: pq.ParquetFile, group: int, columns: list[str], unread: dict[str, None], position: int
) -> Iterator[Record]:
    metadata = parquet.metadata.row_group(group)
    rows = f"row {position}" if metadata.num_rows == 1 else f"rows {position} to {position + metadata.num_rows - 1}"
    if problem := _beyond_limit(metadata, columns, rows):
        yield Record(position, problem=problem)
        return
    try:
        schema = parquet.schema_arrow
        # A batch of pandas' categories holds all of them: these columns are read once, the others row by row.
        encoded = [name for name in columns if "dictionary<" in str(schema.field(schema.names.index(name)).type)]
        shared = parquet.read_row_group(group, columns=encoded)
        others = [name for name in columns if name not in encoded]
        first = 0
        for batch in parquet.iter_batches(batch_size=ROWS, row_groups=[group], columns=others):
            for row in range(batch.num_rows):
                cells = {name: batch.column(name).slice(row, 1) for name in others}
                cells |= {name: shared[name].slice(first + row, 1).chunk(0) for name in encoded}
                yield _parquet_row(cells, position, unread)
                position += 1
            first += batch.num_rows
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        yield Record(position, problem=_unreadable(f"of {rows}, those from row {position} cannot be read", error))


def _beyond_limit(metadata: pq.RowGroupMetaData, columns: list[str], rows: str) -> Problem | None:
    """Why a row group is not decoded: a column's size says that some cell is beyond the limit."""
    for number in range(metadata.num_columns):
        column = metadata.column(number)
        if column.path_in_schema.split(".")[0] not in columns:
            continue
        if column.total_uncompressed_size > metadata.num_rows * limits.MAX_RECORD + limits.MAX_RECORD // 64:
            return limits.too_long(f"{column.path_in_schema} of {rows}")
    return None


def _parquet_row(cells: dict[str, pa.Array], position: int, unread: dict[str, None]) -> Record:
    values: dict[str, Any] = dict(unread)
    size = 0
    for name, cell in cells.items():
        if isinstance(cell, pa.DictionaryArray) and cell.is_valid()[0].as_py():
            cell = cell.dictionary.slice(cell.indices[0].as_py(), 1)
        size += cell.nbytes
        if size > limits.MAX_RECORD:
            return Record(position, problem=limits.too_long(f"row {position}"))
        try:
            values[name] = cell[0].as_py()
        except UnicodeDecodeError as error:
            return Record(position, problem=_unreadable(f"row {position} is not text", error))
        except (pa.ArrowException, ValueError, OverflowError, TypeError, RecursionError):
            values[name] = Unreadable(str(cell.type))
    return Record(position, value=values)


def _unreadable(what: str, error: Exception) -> Problem:
    return Problem(RejectReason.UNDECODABLE, f"{what}: {error}")
