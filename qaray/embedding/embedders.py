"""Embedding models: texts → unit vectors, in batches of similar length under a token budget, to limit padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from qaray.metrics.similarity import unit_vectors
from qaray.models.catalogue import resolve
from qaray.models.loading import loading

PROBE = "At what temperature does iron melt?"  # encoded once to check the model
ECHO = "echo"  # name of the placeholder embedder
ECHO_DIMENSIONS = 256
# Tokens per batch, with padding. On a CPU the activations between two layers stay in its caches.
BATCH_TOKENS = {"cpu": 1_000, "cuda": 64_000}
LEAST_BATCH_TOKENS = 250  # minimum, even if threads stay idle: smaller batches are mostly overhead


@dataclass(frozen=True)
class EmbedderSettings:
    """Model settings of an actor. Picklable."""

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

    On CPUs each thread encodes a batch of its own: threads that share the products of a small model wait for each
    other. Custom model code may keep state between calls, and is called by one thread only.
    """

    def __init__(self, settings: EmbedderSettings) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        from qaray.engines.local.cpu import default_threads, set_up
        from qaray.models.hardware import pick_dtype

        self.tokenizing = tokenizing = Lock()  # tokenizers are not thread-safe

        class Model(SentenceTransformer):
            def preprocess(self, *args: Any, **options: Any) -> Any:
                with tokenizing:
                    return super().preprocess(*args, **options)

        device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        batch_per_thread = device.type == "cpu" and not settings.trust_remote_code
        self.at_once = (settings.threads or default_threads(settings.actors)) if batch_per_thread else 1
        set_up(1 if batch_per_thread else settings.threads, settings.actors)
        with loading(f"embedding_model {settings.name}"):
            self.model = Model(
                resolve(settings.name, settings.cache_dir),
                device=str(device),
                cache_folder=settings.cache_dir,
                trust_remote_code=settings.trust_remote_code,
                model_kwargs={"dtype": pick_dtype(settings.dtype, device), "use_safetensors": True},
            )
            if not np.isfinite(self.model.encode(PROBE, show_progress_bar=False, convert_to_numpy=True)).all():
                raise ValueError(
                    "its vectors are not finite: its weights are damaged, or exceed the range of its dtype"
                )
        self.batch_tokens, self.limit = BATCH_TOKENS[device.type], self.model.max_seq_length
        self.threads = ThreadPoolExecutor(self.at_once)

    def encode(self, texts: Sequence[str], instruction: str = "") -> tuple[np.ndarray, list[int]]:
        """(unit vectors [N, D] float32, tokens beyond the model's limit [N]). A zero vector stays zero."""

        def vectors(indices: list[int]) -> np.ndarray:
            batch = [texts[index] for index in indices]
            found = self.model.encode(
                batch, prompt=instruction, batch_size=len(batch), show_progress_bar=False, convert_to_numpy=True
            )
            return np.asarray(found, dtype=np.float32)

        if not texts:
            return np.empty((0, self.model.get_embedding_dimension() or 0), dtype=np.float32), []
        tokens, lost = self._tokens(texts, instruction)
        tokens_per_thread = max(LEAST_BATCH_TOKENS, -(-sum(tokens) // self.at_once))
        index_batches = list(batches(tokens, min(self.batch_tokens, tokens_per_thread)))
        found = np.concatenate(list(self.threads.map(vectors, index_batches)))
        return unit_vectors(found[np.argsort([index for indices in index_batches for index in indices])]), lost

    def _tokens(self, texts: Sequence[str], instruction: str) -> tuple[list[int], list[int]]:
        """Tokens of each text that the model reads, and those beyond its limit, including special tokens."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self.model, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # static embeddings: no limit, no padding
            return [1 + len(text) // 4 for text in texts], [0] * len(texts)
        with self.tokenizing:  # batches of a failed call may still be running
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
    """Yields indices of texts of similar length, longest first: one text, or at most ``budget`` tokens with padding.

    ``lengths`` are in tokens. Characters do not suffice: a sentence of formulas has twice the tokens of a sentence of
    prose, and batches sorted by characters were one third padding.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class EchoEmbedder:
    """Placeholder without a model: hashed word counts. For dry runs and tests."""

    def encode(self, texts: Sequence[str], instruction: str = "") -> tuple[np.ndarray, list[int]]:
        from sklearn.feature_extraction.text import HashingVectorizer

        if not texts:
            return np.empty((0, ECHO_DIMENSIONS), dtype=np.float32), []
        hashed = HashingVectorizer(n_features=ECHO_DIMENSIONS, alternate_sign=False, norm="l2", dtype=np.float32)
        return np.asarray(hashed.transform(texts).todense(), dtype=np.float32), [0] * len(texts)
