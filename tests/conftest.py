"""What tests share: paths, small papers, a real local Ray."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"  # real papers, on some machines only
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")  # read when Ray is imported
# Ray reads these when it is imported, by whichever test comes first; the workers of pytest-xdist inherit them.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def shared(name: str) -> Any:
    """A file of the shared data; the test is skipped where there is none."""
    if not (SHARED / name).exists():
        pytest.skip("the shared data is not on this machine")
    return json.loads((SHARED / name).read_text())


def python_path() -> str:
    """For processes that tests start: this checkout before what the environment has."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def make_paper(number: int, **fields: Any) -> dict[str, Any]:
    """A paper with a few sentences that the echo engine can ask about."""
    sentences = [
        f"The melting point of compound {number}-{i} is {300 + 7 * i + number % 50} K at a pressure of {i + 1}.5 bar."
        for i in range(4)
    ]
    return {
        "doi": f"10.0/test.{number:06d}",
        "txt": " ".join(sentences),
        "keywords": ["melting point", f"compound {number}"],
        **fields,
    }


def with_pairs(number: int, count: int = 3, **fields: Any) -> dict[str, Any]:
    """The same with pairs that were made elsewhere."""
    pairs = [
        {
            "Q": f"At what temperature does compound {number}-{i} melt?",
            "A": f"At {300 + 7 * i + number % 50} K and {i + 1}.5 bar.",
        }
        for i in range(count)
    ]
    return {**make_paper(number), "Q&A": pairs, "num_Q&A": count, **fields}


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The session's Ray cluster: the environment that leads to it."""
    from tests.commands import shared_cluster

    base = tmp_path_factory.getbasetemp()
    with shared_cluster(base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) as environment:
        yield environment


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    if "tests.commands" in sys.modules:
        sys.modules["tests.commands"].end_started()


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the bundled model is converted to; kept between test runs in the checkout's cache folder."""
    return str(ROOT / "cache")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama with random weights: 2 layers, 4 query and 2 key-value heads, 512 tokens of context, bytes as tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def save_tiny_model(folder: Path, **changes: Any) -> str:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    values = {
        "vocab_size": len(letters) + 2, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0,
        "eos_token_id": 1, "initializer_range": 0.5,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**{**values, **changes})).save_pretrained(folder)
    return str(folder)


def sentencepiece_tokenizer(adds_bos: bool = True) -> Any:
    """A tokenizer with Llama's SentencePiece settings: a text begins with a blank; ASCII characters, a few merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from qaray.models.tokenizer import HFTokenizer

    merges = [("]", "("), ("▁", "W"), ("z", "j"), ("x", "z"), ("q", "x")]
    tokens = ["<s>", "</s>", "<unk>", "▁", "\n", *map(chr, range(33, 127)), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    return HFTokenizer(fast)
