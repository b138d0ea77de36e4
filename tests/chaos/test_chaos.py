"""Each stage under each fault, by one seed; `python -m tests.chaos --runs 50` draws other moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.runs import CASES, Chaos, table_of, two_nodes

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with two_nodes() as nodes:
        yield Chaos(Path(tmp_path_factory.mktemp("chaos")), nodes)


@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_nothing_is_lost(chaos: Chaos, fault: str, stage: str) -> None:
    outcome = chaos.run(CASES.index((fault, stage)), (fault, stage))
    assert outcome.good, table_of([outcome])


def test_a_training_goes_on_when_a_node_is_lost_and_another_comes(chaos: Chaos) -> None:
    outcome = chaos.run(len(CASES), ("kill_node", "fine-tune"))
    assert outcome.good, table_of([outcome])
    assert outcome.starts == 1
