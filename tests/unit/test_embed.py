"""The embedding actor: blocks of papers, and blocks of none. Batches of the bundled model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qaray.config import EvaluateConfig
from qaray.embedding.embed import EMBEDDED, TEXTS, _Embedding, settings
from qaray.embedding.embedders import batches, load_embedder
from qaray.metrics.similarity import unit_vectors
from qaray.models.catalogue import resolve
from qaray.run.directory import Run
from qaray.run.tries import Tries

CONFIG = EvaluateConfig(output_dir="-", engine="echo")
PAPERS = pa.table(
    {
        "doi": ["a", "b", "c"],
        "digest": ["1", "2", "3"],
        "queries": [["iron melts", "zinc binds"], [], ["gold"]],
        "documents": [["Iron melts.", "Zinc binds.", "Water."], ["Water."], ["Gold."]],
        "questions": [["iron?", "zinc?"], [], ["gold?"]],
    },
    schema=pa.schema(
        [("doi", pa.string()), ("digest", pa.string()), *((name, pa.list_(pa.string())) for name in TEXTS)]
    ),
)


def test_each_paper_gets_its_own_texts_back(tmp_path):
    rows = _Embedding(settings(CONFIG), lambda: False, Tries.of(Run.at(str(tmp_path))))(PAPERS).to_pylist()
    assert [[len(row["matrix"]), len(row["vectors"])] for row in rows] == [[2, 2], [0, 0], [1, 1]]
    assert [len(line) for line in rows[0]["matrix"]] == [3, 3]
    assert rows[0]["matrix"][0][0] == pytest.approx(1)  # the same words
    assert rows[0]["matrix"][1][1] == pytest.approx(1)
    assert rows[0]["query_tokens_lost"] == [0, 0]
    assert rows[1]["documents"] == ["Water."]
    assert rows[1]["document_tokens_lost"] == []


@pytest.mark.parametrize(("stop", "papers"), [(True, PAPERS), (False, PAPERS.slice(0, 0))])
def test_a_stop_and_an_empty_block_give_no_rows(tmp_path, stop, papers):
    found = _Embedding(settings(CONFIG), lambda: stop, Tries.of(Run.at(str(tmp_path))))(papers)
    assert found.num_rows == 0
    assert found.schema.names[-len(EMBEDDED) :] == [name for name, _ in EMBEDDED]


@pytest.mark.parametrize("lengths", [[], [7], [90], [3, 90, 3, 4, 90, 1, 10, 10, 10, 2] * 7])
def test_batches_hold_each_text_once_under_the_budget(lengths):
    found = list(batches(lengths, 40))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 40 for batch in found)
    in_order = [lengths[place] for batch in found for place in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_texts_embedded_together_are_what_the_library_makes_of_each():
    config = EvaluateConfig(output_dir="-", dtype="float32", threads_per_actor=4)
    embedder = load_embedder(settings(config))
    texts = ["Iron melts at 1811 K.", "", "(T/T_c)^{3/2} = 1 - x_1x_2/y_3", "word " * 400, "Zinc.", "α–β ≤ 10⁻³ " * 60]
    texts += [f"{'A sentence ' * (i % 9)} of number {i}." for i in range(120)]
    embedder.batch_tokens = 60
    found, lost = embedder.encode(texts, "query: ")
    plain = [embedder.model.encode([text], prompt="query: ")[0] for text in texts]
    np.testing.assert_allclose(found, unit_vectors(np.stack(plain)), atol=1e-5)
    tokens = [len(embedder.model.tokenizer.tokenize("query: " + text)) + 2 for text in texts]
    assert lost == [max(0, count - embedder.limit) for count in tokens]
    assert sum(map(bool, lost)) == 2


def test_a_model_without_a_transformer(tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    folder = Path(resolve(EvaluateConfig(output_dir="-").embedder, CONFIG.model.cache_dir))
    torch.manual_seed(0)
    words = StaticEmbedding(Tokenizer.from_file(str(folder / "tokenizer.json")), embedding_dim=8)
    SentenceTransformer(modules=[words], device="cpu", truncate_dim=6).save(str(tmp_path / "static"))
    embedder = load_embedder(replace(settings(CONFIG), name=str(tmp_path / "static")))
    texts = ["iron melts", "zinc", "iron melts at last"]
    found, lost = embedder.encode(texts)
    np.testing.assert_allclose(found, unit_vectors(embedder.model.encode(texts)), atol=1e-6)
    assert lost == [0, 0, 0]
    assert embedder.encode([])[0].shape == (0, found.shape[1])
