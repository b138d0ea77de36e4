"""How often the driver looks at a run."""

from types import SimpleNamespace

import pytest

from qaray import pacing
from qaray.pacing import LONGEST, SHARE, Unhurried


@pytest.fixture
def slept(monkeypatch):
    """Seconds of each look's sleep, on a clock that only sleeping and ``slept.clock`` move."""

    class Slept(list):
        clock = 100.0

    found = Slept()

    def sleep(seconds):
        found.append(seconds)
        found.clock += seconds

    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: found.clock, sleep=sleep))
    return found


def test_looks_grow_rare_while_nothing_happens_and_frequent_once_something_does(slept):
    counts = SimpleNamespace(num_inputs_received=1, num_task_outputs_generated=0)
    executor = SimpleNamespace(_topology={SimpleNamespace(metrics=counts): None})
    look = Unhurried().on_execution_step
    look(executor)
    assert slept == []
    slept.clock += 2.0
    look(executor)
    assert slept == [pytest.approx(2.0 * SHARE)]
    slept.clock += 1000.0
    look(executor)
    assert slept[-1] == LONGEST
    for name in ("num_inputs_received", "num_task_outputs_generated"):
        setattr(counts, name, getattr(counts, name) + 1)
        before = len(slept)
        look(executor)
        assert len(slept) == before
        slept.clock += 0.1
        look(executor)
        assert slept[-1] == pytest.approx(0.1 * SHARE)
