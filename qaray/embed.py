"""The embedding stage: papers with their pairs → cosines of pairs and sentences, vectors of questions.

An actor takes a block of papers and embeds all their texts together: batches cross the borders of papers and hold texts
of like length under a token budget, so that little is padded. D: dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qaray import models
from qaray.config import ConfigError, EvaluateConfig
from qaray.engines.base import TOO_MANY_DEATHS, StopCheck, actor_name, actor_resources, pool
from qaray.metrics.similarity import unit_vectors
from qaray.runtime import actor_gpus
from qaray.tries import Guard, Tries

if TYPE_CHECKING:
    from ray.data import Dataset

ECHO = "echo"  # the name of the embedding model that is none
ECHO_DIMENSIONS = 256
# Papers that are embedded together, and lost together if an actor dies: some seconds of work, and twenty milliseconds
# of the driver's.
PAPERS_PER_BLOCK = {"cpu": 4, "cuda": 64}
# Of a batch, padding counted. What lies between two layers stays in a CPU's caches.
BATCH_TOKENS = {"cpu": 1_000, "cuda": 64_000}

TEXTS = ("queries", "documents", "questions")
EMBEDDED = [
    ("matrix", pa.list_(pa.list_(pa.float32()))),  # [Q][S]
    ("vectors", pa.list_(pa.list_(pa.float32()))),  # [Q][D], of the questions
    ("query_tokens_lost", pa.list_(pa.int32())),  # [Q]
    ("document_tokens_lost", pa.list_(pa.int32())),  # [S]
    ("error", pa.string()),  # why there are none of these
]


@dataclass(frozen=True)
class EmbedderSettings:
    """How an actor loads its model. Picklable."""

    name: str
    cache_dir: str
    dtype: str
    gpus: float
    threads: int | None
    actors: int
    trust_remote_code: bool
    query_instruction: str


def embed(texts: Dataset, config: EvaluateConfig, should_stop: StopCheck, tries: Tries) -> Dataset:
    """Rows with ``queries`` [Q], ``documents`` [S] and ``questions`` [Q] → the same, and the columns of EMBEDDED.

    Documents beside no queries are not embedded: there is nothing to compare them with.
    Rows that are left out because the run stops are simply missing.
    """
    gpus = actor_gpus(config.gpus_per_actor)
    return texts.map_batches(
        _Embedding,
        fn_constructor_args=(settings(config, gpus), should_stop, tries),
        batch_size=papers_per_block(config),
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool(*config.embed_pool),
        **actor_resources(config.cpus_per_actor, gpus, config.labels),
    )


def papers_per_block(config: EvaluateConfig) -> int:
    """Ray must be connected."""
    return config.embed_block or PAPERS_PER_BLOCK["cuda" if actor_gpus(config.gpus_per_actor) else "cpu"]


def settings(config: EvaluateConfig, gpus: float = 0.0) -> EmbedderSettings:
    return EmbedderSettings(
        name=config.embedder,
        cache_dir=config.cache_dir,
        dtype=config.dtype,
        gpus=gpus,
        threads=config.threads_per_actor,
        actors=config.embed_pool[1],
        trust_remote_code=config.trust_remote_code,
        query_instruction=config.query_instruction,
    )


class _Embedding:
    """An actor: embeds blocks of papers."""

    def __init__(self, settings: EmbedderSettings, should_stop: StopCheck, tries: Tries) -> None:
        self.instruction = settings.query_instruction
        self.should_stop = should_stop
        with tries.starting(actor_name(), "loading the model"):
            self.embedder = load_embedder(settings)
        self.guard = Guard(tries)

    def __call__(self, papers: pa.Table) -> pa.Table:
        keys = [f"embed\0{row['doi']}\0{row['digest']}" for row in papers.select(["doi", "digest"]).to_pylist()]
        return self.guard.run(keys, papers, self._embedded, _without_vectors)

    def _embedded(self, papers: pa.Table) -> pa.Table:
        if self.should_stop():
            papers = papers.slice(0, 0)
        queries, documents, questions = (papers[name].to_pylist() for name in TEXTS)
        documents = [own if asked else [] for own, asked in zip(documents, queries, strict=True)]
        query_vectors, queries_lost = self._embed(queries, self.instruction)
        document_vectors, documents_lost = self._embed(documents)
        question_vectors, _ = self._embed(questions)
        matrices = [_listed(q @ d.T) for q, d in zip(query_vectors, document_vectors, strict=True)]
        vectors = [_listed(own) for own in question_vectors]
        return _with_columns(papers, matrices, vectors, queries_lost, documents_lost, [None] * papers.num_rows)

    def _embed(self, texts: list[list[str]], instruction: str = "") -> tuple[list[Any], list[Any]]:
        """(unit vectors, tokens lost) of each paper's texts, embedded together."""
        vectors, lost = self.embedder.encode([text for own in texts for text in own], instruction)
        ends = list(accumulate(map(len, texts), initial=0))
        parts = [slice(start, end) for start, end in pairwise(ends)]
        return [vectors[part] for part in parts], [lost[part] for part in parts]


def _with_columns(papers: pa.Table, *columns: Sequence[Any]) -> pa.Table:
    """The papers and the columns of EMBEDDED."""
    for (name, kind), values in zip(EMBEDDED, columns, strict=True):
        papers = papers.append_column(name, pa.array(values, kind))
    return papers


def _without_vectors(papers: pa.Table) -> pa.Table:
    """Papers that killed the processes which embedded them: no cosines, and vectors that are no numbers."""
    none: list[list[Any]] = [[]] * papers.num_rows
    vectors = [[[np.nan]] * len(questions) for questions in papers["questions"].to_pylist()]
    return _with_columns(papers, none, vectors, none, none, [TOO_MANY_DEATHS] * papers.num_rows)


def _listed(matrix: np.ndarray) -> list[np.ndarray]:
    return list(np.asarray(matrix, dtype=np.float32))


def load_embedder(settings: EmbedderSettings) -> Embedder | EchoEmbedder:
    return EchoEmbedder() if settings.name == ECHO else Embedder(settings)


class Embedder:
    """A sentence-transformers model. Raises ConfigError if it cannot be loaded.

    On CPUs each thread has a batch of its own: threads that share every product of a small model wait for one another
    for a fifth of the time.
    """

    def __init__(self, settings: EmbedderSettings) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        from qaray.devices import pick_dtype
        from qaray.engines.cpu import default_threads, loading

        device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        threads = (settings.threads or default_threads(settings.actors)) if device.type == "cpu" else 1
        try:
            with loading(threads=1, actors=settings.actors), models.quiet_transformers():
                self.model = SentenceTransformer(
                    models.resolve(settings.name, settings.cache_dir),
                    device=str(device),
                    cache_folder=settings.cache_dir,
                    trust_remote_code=settings.trust_remote_code,
                    model_kwargs={"dtype": pick_dtype(settings.dtype, device), "use_safetensors": True},
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"embedding_model {settings.name}: {models.first_line(error)}") from None
        self.batch_tokens, self.limit = BATCH_TOKENS[device.type], self.model.max_seq_length
        self.threads, self.tokenizing = ThreadPoolExecutor(threads), Lock()

    def encode(self, texts: Sequence[str], instruction: str = "") -> tuple[np.ndarray, list[int]]:
        """Unit vectors [N, D] float32, where a zero vector stays one, and the tokens beyond the model's limit [N]."""
        tokens = self._tokens(texts, instruction)
        read = [min(count, self.limit or count) for count in tokens]
        together = list(batches(read, self.batch_tokens))
        found = self.threads.map(lambda places: self._vectors([texts[i] for i in places], instruction), together)
        if not together:
            return np.empty((0, self.model.get_embedding_dimension() or 0), dtype=np.float32), []
        order = np.argsort([place for places in together for place in places])
        vectors = np.concatenate(list(found))[order]
        return unit_vectors(vectors), [count - kept for count, kept in zip(tokens, read, strict=True)]

    def _vectors(self, texts: list[str], instruction: str) -> np.ndarray:
        """Vectors of one batch [N, D] float32."""
        import torch
        from sentence_transformers.util import batch_to_device

        with self.tokenizing:  # tokenizers may not be shared by threads
            features = self.model.preprocess(texts, prompt=instruction)
        with torch.inference_mode():
            out = self.model(batch_to_device(features, self.model.device))["sentence_embedding"]
        return out.float().cpu().numpy()

    def _tokens(self, texts: Sequence[str], instruction: str) -> list[int]:
        """Tokens of each whole text, specials counted."""
        if not texts:
            return []
        ids = self.model.tokenizer([instruction + text for text in texts], truncation=False, verbose=False).input_ids
        return [len(own) for own in ids]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of texts of like length, the longest first: one text, or as many as padded have ``budget`` tokens at most.

    The lengths are of tokens. Characters would not do: a sentence of formulas has twice the tokens of one of prose, and
    batches in the order of characters were a third padding.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


class EchoEmbedder:
    """No model: hashed counts of words. For dry runs and tests."""

    def encode(self, texts: Sequence[str], instruction: str = "") -> tuple[np.ndarray, list[int]]:
        from sklearn.feature_extraction.text import HashingVectorizer

        if not texts:
            return np.empty((0, ECHO_DIMENSIONS), dtype=np.float32), []
        hashed = HashingVectorizer(n_features=ECHO_DIMENSIONS, alternate_sign=False, norm="l2", dtype=np.float32)
        return np.asarray(hashed.transform(texts).todense(), dtype=np.float32), [0] * len(texts)
