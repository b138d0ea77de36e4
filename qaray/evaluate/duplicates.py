"""Near-duplicate questions across papers, by nearest-neighbour search with faiss, exact or HNSW."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from qaray.config import EvaluateConfig
from qaray.corpus.records import has_visible
from qaray.evaluate.measure import Context
from qaray.evaluate.tables import QUESTIONS

SCHEMA = pa.schema(
    [
        ("doi", pa.string()), ("qa", pa.int32()), ("question", pa.string()),
        ("other_doi", pa.string()), ("other_qa", pa.int32()), ("other_question", pa.string()), ("cosine", pa.float32()),
    ]
)  # fmt: skip
NEIGHBOURS = 8  # neighbours per question, itself included
MAX_CHARACTERS = 1_000  # of a question in the table, which repeats it for each of its neighbours
MAX_QUESTIONS = 1_000_000  # maximum number of questions: about 5 GB of memory at 384 dimensions
EXACT_UP_TO = 20_000  # questions up to which the search is exact
LINKS = 32  # links per question in the HNSW graph


def find_duplicates(context: Context, config: EvaluateConfig) -> dict[str, Any] | None:
    """Counts of ``near_duplicates``; None if similarity is not measured. Ray must be connected."""
    import ray

    if "similarity" not in config.metrics.names:
        return None
    task = ray.remote(near_duplicates).options(num_cpus=1)
    return ray.get(task.remote(context, config.metrics.duplicate_cosine))


def near_duplicates(context: Context, threshold: float) -> dict[str, Any]:
    """Writes near_duplicates.parquet and returns the counts. Runs as one task.

    The file has one row per pair of questions from different papers with a cosine of at least ``threshold``.
    """
    dois: list[str] = []
    numbers: list[int] = []
    questions: list[str] = []
    vectors: list[np.ndarray] = []
    for shard in context.source.shards():
        if len(dois) >= MAX_QUESTIONS:
            break
        rows = QUESTIONS.read(context.run, shard, context.source.keys(shard))
        for doi in sorted(rows):
            for qa, (question, vector) in enumerate(
                zip(rows[doi][0]["questions"], rows[doi][0]["vectors"], strict=True)
            ):
                if has_visible(question) and np.isfinite(vector).all() and len(dois) < MAX_QUESTIONS:
                    dois.append(doi)
                    numbers.append(qa)
                    questions.append(question[:MAX_CHARACTERS])
                    vectors.append(np.asarray(vector, dtype=np.float32))
    pairs = _near(np.stack(vectors), dois, threshold) if vectors else []
    columns = [
        [dois[a] for a, _, _ in pairs], [numbers[a] for a, _, _ in pairs], [questions[a] for a, _, _ in pairs],
        [dois[b] for _, b, _ in pairs], [numbers[b] for _, b, _ in pairs], [questions[b] for _, b, _ in pairs],
        [cosine for _, _, cosine in pairs],
    ]  # fmt: skip
    found = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    (context.run.root / "near_duplicates.parquet").write_table(found)
    touched = {place for a, b, _ in pairs for place in (a, b)}
    return {
        "threshold": threshold,
        "questions": len(dois),
        "pairs": len(pairs),
        "share_of_questions": len(touched) / len(dois) if dois else None,
        "search": "exact" if len(dois) <= EXACT_UP_TO else "HNSW",
    }


def _near(vectors: np.ndarray, dois: list[str], threshold: float) -> list[tuple[int, int, float]]:
    """(a, b, cosine) with a < b, from different papers, nearest first. ``vectors`` [N, D] have unit length."""
    import faiss

    dimensions = vectors.shape[1]
    if len(vectors) <= EXACT_UP_TO:
        index: Any = faiss.IndexFlatIP(dimensions)
    else:
        index = faiss.IndexHNSWFlat(dimensions, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    found: dict[tuple[int, int], float] = {}
    for first in range(0, len(vectors), 4096):
        cosines, others = index.search(vectors[first : first + 4096], min(NEIGHBOURS, len(vectors)))
        for place, (row_cosines, row_others) in enumerate(zip(cosines, others, strict=True), first):
            for cosine, other in zip(row_cosines, row_others, strict=True):
                if other >= 0 and cosine >= threshold and dois[other] != dois[place]:
                    found[min(place, int(other)), max(place, int(other))] = float(cosine)
    return sorted(((a, b, cosine) for (a, b), cosine in found.items()), key=lambda pair: (-pair[2], pair[0], pair[1]))
