"""Embedding models: texts → unit vectors, in batches of like length under a token budget, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from qaray.config import ConfigError
from qaray.metrics.similarity import unit_vectors
from qaray.models.catalogue import resolve
from qaray.models.loading import first_line, quiet_transformers

ECHO = "echo"  # the name of the embedding model that is none
ECHO_DIMENSIONS = 256
# Of a batch, padding counted. What lies between two layers stays in a CPU's caches.
BATCH_TOKENS = {"cpu": 1_000, "cuda": 64_000}
LEAST_BATCH_TOKENS = 250  # smaller ones, for the sake of idle threads, are mostly overhead


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

        from qaray.engines.local.cpu import default_threads, set_up
        from qaray.models.hardware import pick_dtype

        self.tokenizing = tokenizing = Lock()  # threads may not share a tokenizer

        class Model(SentenceTransformer):
            def preprocess(self, *args: Any, **options: Any) -> Any:
                with tokenizing:
                    return super().preprocess(*args, **options)

        device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        apart = device.type == "cpu" and not settings.trust_remote_code
        self.at_once = (settings.threads or default_threads(settings.actors)) if apart else 1
        try:
            set_up(1 if apart else settings.threads, settings.actors)
            with quiet_transformers():
                self.model = Model(
                    resolve(settings.name, settings.cache_dir),
                    device=str(device),
                    cache_folder=settings.cache_dir,
                    trust_remote_code=settings.trust_remote_code,
                    model_kwargs={"dtype": pick_dtype(settings.dtype, device), "use_safetensors": True},
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"embedding_model {settings.name}: {first_line(error)}") from None
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
