"""The pairs of a finished run as one Arrow table, with their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from qaray.evaluate.sources import keys_of, source_of
from qaray.evaluate.tables import GROUNDING, RACAR, Table
from qaray.run.directory import Run
from qaray.schema import DIMENSIONS

SCORES: Mapping[Table, tuple[str, ...]] = {
    RACAR: (*DIMENSIONS, "passes"),
    GROUNDING: ("numbers", "numbers_found", "self_contained", "overlap"),
}
SCHEMA = pa.schema(
    [("doi", pa.string()), ("qa", pa.int32()), ("pair_id", pa.string()), ("Q", pa.string()), ("A", pa.string())]
    + [table.schema.field(name) for table, names in SCORES.items() for name in names]
)


def read_pairs(output_dir: str) -> pa.Table:
    """The pairs of a run directory, one row each; scores that were not measured are null.

    Columns: ``doi``; ``qa``, the pair's index in its paper; ``pair_id``; ``Q`` and ``A``; the five grades of RACAR
    (1…5) and ``passes``; ``numbers``, the count of numbers in the answer; ``numbers_found``, how many of them are in
    the paper; ``self_contained``; ``overlap`` (0…1) of the answer's words with its evidence. All rows are held in
    memory: for more than a few million pairs, read the Parquet shards of ``OUT/evaluation/`` instead. Raises
    RunRefused unless the run is finished.
    """
    run = Run.at(output_dir)
    source, measured, evaluation = source_of(run), run.measured(), run.evaluation.pinned()
    batches = [SCHEMA.empty_table()]
    for shard in source.shards():
        papers = source.read(shard)
        keys = keys_of(papers)
        scores: dict[str, dict[str, Any]] = {}
        for table, names in SCORES.items() if measured else ():
            for rows in table.read(evaluation, shard, keys, ["pair_id", *names]).values():
                for row in rows:
                    scores.setdefault(row["pair_id"], {}).update({name: row[name] for name in names})
        found = [
            {"doi": paper["doi"], "qa": qa, **pair, **scores.get(pair["pair_id"], {})}
            for paper in papers
            for qa, pair in enumerate(paper["pairs"])
        ]
        batches.append(pa.Table.from_pylist(found, schema=SCHEMA))
    return pa.concat_tables(batches)
