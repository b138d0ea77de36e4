"""Parquet: one record per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from qaray.corpus.records import Problem, Record
from qaray.run.storage import Location, StoreFailed
from qaray.schema import RejectReason


def parquet_rows(file: Location, fields: Sequence[str]) -> Iterator[Record]:
    """Yields the rows of a Parquet file as records, with those of the ``fields`` that it has. Raises StoreFailed.

    Other columns are not read: a record has their names, for messages, with None for the value.
    """
    position = 0
    try:
        with file.open_raw() as stream:
            parquet = pq.ParquetFile(stream)
            names = parquet.schema_arrow.names
            columns = [name for name in fields if name in names]
            others = {name: None for name in names if name not in columns}
            for batch in parquet.iter_batches(batch_size=64, columns=columns):
                for row in range(batch.num_rows):
                    yield _parquet_row(batch, row, position, others)
                    position += 1
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError) as error:
        detail = f"the Parquet file cannot be read: {error}"
        yield Record(position, problem=Problem(RejectReason.UNDECODABLE, detail))


def _parquet_row(batch: pa.RecordBatch, row: int, position: int, others: dict[str, None]) -> Record:
    try:
        values = batch.slice(row, 1).to_pylist()
        return Record(position, value={**others, **(values[0] if values else {})})
    except (UnicodeDecodeError, pa.ArrowException) as error:
        return Record(position, problem=Problem(RejectReason.UNDECODABLE, f"row {position} is not text: {error}"))
