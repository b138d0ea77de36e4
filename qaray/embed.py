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
LEAST_BATCH_TOKENS = 250  # smaller ones, for the sake of idle threads, are mostly overhead

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

    On CPUs each thread has a batch of its own: threads that share the products of a small model wait for one another.
    Code that came with a model may keep something between its calls, and is not called by two threads.
    """

    def __init__(self, settings: EmbedderSettings) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        from qaray.devices import pick_dtype
        from qaray.engines.cpu import default_threads, loading

        self.tokenizing = tokenizing = Lock()  # threads may not share a tokenizer

        class Model(SentenceTransformer):
            def preprocess(self, *args: Any, **options: Any) -> Any:
                with tokenizing:
                    return super().preprocess(*args, **options)

        device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        apart = device.type == "cpu" and not settings.trust_remote_code
        self.at_once = (settings.threads or default_threads(settings.actors)) if apart else 1
        try:
            with loading(1 if apart else settings.threads, settings.actors), models.quiet_transformers():
                self.model = Model(
                    models.resolve(settings.name, settings.cache_dir),
                    device=str(device),
                    cache_folder=settings.cache_dir,
                    trust_remote_code=settings.trust_remote_code,
                    model_kwargs={"dtype": pick_dtype(settings.dtype, device), "use_safetensors": True},
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"embedding_model {settings.name}: {models.first_line(error)}") from None
        self.batch_tokens, self.limit = BATCH_TOKENS[device.type], self.model.max_seq_length
        self.threads = ThreadPoolExecutor(self.at_once)

    def encode(self, texts: Sequence[str], instruction: str = "") -> tuple[np.ndarray, list[int]]:
        """Unit vectors [N, D] float32, where a zero vector stays one, and the tokens beyond the model's limit [N]."""

        def vectors(places: list[int]) -> np.ndarray:
            batch = [texts[place] for place in places]
            found = self.model.encode(
                batch, prompt=instruction, batch_size=len(batch), show_progress_bar=False, convert_to_numpy=True
            )
            return np.asarray(found, dtype=np.float32)

        if not texts:
            return np.empty((0, self.model.get_embedding_dimension() or 0), dtype=np.float32), []
        tokens, lost = self._tokens(texts, instruction)
        shared = max(LEAST_BATCH_TOKENS, -(-sum(tokens) // self.at_once))
        together = list(batches(tokens, min(self.batch_tokens, shared)))
        found = np.concatenate(list(self.threads.map(vectors, together)))
        return unit_vectors(found[np.argsort([place for places in together for place in places])]), lost

    def _tokens(self, texts: Sequence[str], instruction: str) -> tuple[list[int], list[int]]:
        """Tokens of each text that the model reads, and those beyond its limit; specials counted."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self.model, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # a table of vectors: all is read, nothing padded
            return [1 + len(text) // 4 for text in texts], [0] * len(texts)
        with self.tokenizing:  # of a call that failed, batches may still be at work
            ids = tokenizer(
                [instruction + text for text in texts],
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            ).input_ids
        read = [min(len(own), self.limit or len(own)) for own in ids]
        return read, [len(own) - kept for own, kept in zip(ids, read, strict=True)]


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
