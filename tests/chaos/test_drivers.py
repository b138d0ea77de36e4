"""Two drivers: each stage under each attack, by one seed; `python -m tests.chaos.drivers` draws other moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.drivers import CASES, Attacks, no_namespaces, one_node
from tests.chaos.runs import table_of

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(no_namespaces()), reason=no_namespaces())]


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacks]:
    with one_node() as address:
        yield Attacks(Path(tmp_path_factory.mktemp("drivers")), address)


@pytest.mark.parametrize(("attack", "stage"), CASES)
def test_each_paper_counts_once(attacks: Attacks, attack: str, stage: str) -> None:
    outcome = attacks.run(CASES.index((attack, stage)), (attack, stage))
    assert outcome.good, table_of([outcome])
