"""The embedding actor, without a model: blocks of papers, and blocks of none."""

import pyarrow as pa
import pytest

from qaray.config import EvaluateConfig
from qaray.embed import EMBEDDED, TEXTS, _Embedding, settings
from qaray.runs import Run
from qaray.tries import Tries

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
