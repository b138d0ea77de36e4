"""Embeds papers and their pairs on a pool of actors: cosines of pairs and sentences, vectors of questions.

An actor embeds all texts of a block of papers together, so that batches span papers. D: dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qaray.config import EvaluateConfig
from qaray.embedding.embedders import EmbedderSettings, load_embedder
from qaray.engines.guarded import TOO_MANY_DEATHS
from qaray.engines.pool import Startup, actor_resources, pool
from qaray.run.cluster import actor_gpus
from qaray.run.stopping import StopCheck
from qaray.run.tries import Guard, Tries

if TYPE_CHECKING:
    from ray.data import Dataset

# Papers embedded together, and lost together if an actor dies: a few seconds of work, and 20 ms of the driver's.
PAPERS_PER_BLOCK = {"cpu": 4, "cuda": 64}
TEXTS = ("queries", "documents", "questions")
EMBEDDED = [
    ("matrix", pa.list_(pa.list_(pa.float32()))),  # [Q][S]
    ("vectors", pa.list_(pa.list_(pa.float32()))),  # [Q][D], of the questions
    ("query_tokens_lost", pa.list_(pa.int32())),  # [Q]
    ("document_tokens_lost", pa.list_(pa.int32())),  # [S]
    ("reason", pa.string()),  # failure of the paper, which then has none of these
    ("detail", pa.string()),
]


def embed(texts: Dataset, config: EvaluateConfig, should_stop: StopCheck, tries: Tries) -> Dataset:
    """Rows with ``queries`` [Q], ``documents`` [S] and ``questions`` [Q] → the same with the columns of EMBEDDED.

    Documents of a paper without queries are not embedded. Rows skipped because the run stops are missing.
    """
    gpus = actor_gpus(config.resources.gpus_per_actor)
    return texts.map_batches(
        _Embedding,
        fn_constructor_args=(settings(config, gpus), should_stop, tries),
        batch_size=papers_per_block(config),
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool(*config.embed_pool),
        **actor_resources(config.resources.cpus_per_actor, gpus, config.cluster.labels),
    )


def papers_per_block(config: EvaluateConfig) -> int:
    """Papers per block: ``embed_block``, by default PAPERS_PER_BLOCK. Ray must be connected."""
    return (
        config.embedding.embed_block
        or PAPERS_PER_BLOCK["cuda" if actor_gpus(config.resources.gpus_per_actor) else "cpu"]
    )


def settings(config: EvaluateConfig, gpus: float = 0.0) -> EmbedderSettings:
    return EmbedderSettings(
        name=config.embedder,
        cache_dir=config.model.cache_dir,
        dtype=config.model.dtype,
        gpus=gpus,
        threads=config.resources.threads_per_actor,
        actors=config.embed_pool[1],
        trust_remote_code=config.model.trust_remote_code,
        query_instruction=config.metrics.query_instruction,
    )


class _Embedding:
    """Actor that embeds blocks of papers."""

    def __init__(self, settings: EmbedderSettings, should_stop: StopCheck, tries: Tries) -> None:
        self.instruction = settings.query_instruction
        self.should_stop = should_stop
        self.guard, self.startup = Guard(tries), Startup(tries)
        with self.startup():
            self.embedder = load_embedder(settings)

    def __call__(self, papers: pa.Table) -> pa.Table:
        self.startup.check()
        keys = [f"embed\0{row['doi']}\0{row['digest']}" for row in papers.select(["doi", "digest"]).to_pylist()]
        return self.guard.run(keys, papers, self._embedded, _without_vectors)

    def _embedded(self, papers: pa.Table) -> pa.Table:
        if self.should_stop():
            papers = papers.slice(0, 0)
        queries, documents, questions = (papers[name].to_pylist() for name in TEXTS)
        documents = [own if paper_queries else [] for own, paper_queries in zip(documents, queries, strict=True)]
        query_vectors, queries_lost = self._embed(queries, self.instruction)
        document_vectors, documents_lost = self._embed(documents)
        question_vectors, _ = self._embed(questions)
        matrices = [_listed(q @ d.T) for q, d in zip(query_vectors, document_vectors, strict=True)]
        vectors = [_listed(own) for own in question_vectors]
        none = [None] * papers.num_rows
        return _with_columns(papers, matrices, vectors, queries_lost, documents_lost, none, none)

    def _embed(self, texts: list[list[str]], instruction: str = "") -> tuple[list[Any], list[Any]]:
        """(unit vectors, truncated tokens) of each paper's texts, which are embedded together."""
        vectors, lost = self.embedder.encode([text for own in texts for text in own], instruction)
        ends = list(accumulate(map(len, texts), initial=0))
        parts = [slice(start, end) for start, end in pairwise(ends)]
        return [vectors[part] for part in parts], [lost[part] for part in parts]


def _with_columns(papers: pa.Table, *columns: Sequence[Any]) -> pa.Table:
    """The papers with the columns of EMBEDDED."""
    for (name, kind), values in zip(EMBEDDED, columns, strict=True):
        papers = papers.append_column(name, pa.array(values, kind))
    return papers


def _without_vectors(papers: pa.Table) -> pa.Table:
    """The columns of papers that killed their process: no cosines, and NaN vectors."""
    count = papers.num_rows
    none: list[list[Any]] = [[]] * count
    vectors = [[[np.nan]] * len(questions) for questions in papers["questions"].to_pylist()]
    return _with_columns(papers, none, vectors, none, none, *([part] * count for part in TOO_MANY_DEATHS))


def _listed(matrix: np.ndarray) -> list[np.ndarray]:
    return list(np.asarray(matrix, dtype=np.float32))
