"""When the driver looks at a run again."""

from types import SimpleNamespace

import pytest

from qaray import pacing
from qaray.pacing import BUSY, LONGEST, UntilSomethingHappens


@pytest.fixture
def run(monkeypatch):
    """A run of some tasks on a clock that only waiting and ``run.clock`` move; ``run.waited`` holds what was waited."""
    found = SimpleNamespace(clock=100.0, waited=[], ready_after=None, tasks=["long", "longer"])

    def wait(tasks, num_returns, timeout, fetch_local):
        assert (sorted(tasks), num_returns, fetch_local) == (sorted(found.tasks), 1, False)
        ready = found.ready_after is not None and found.ready_after <= timeout
        found.waited.append(found.ready_after if ready else timeout)
        found.clock += found.waited[-1]
        return (tasks[:1], tasks[1:]) if ready else ([], tasks)

    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: found.clock))
    monkeypatch.setattr(pacing, "ray", SimpleNamespace(wait=wait))

    def active():
        return [SimpleNamespace(get_waitable=lambda task=task: task) for task in found.tasks]

    found.executor = SimpleNamespace(_topology=(SimpleNamespace(get_active_tasks=active),))
    return found


def test_the_next_look_waits_for_a_task_where_nothing_happened_of_late(run):
    look = UntilSomethingHappens().on_execution_step
    look(run.executor)
    assert run.waited == []  # the run has just begun
    run.clock += BUSY
    look(run.executor)
    look(run.executor)
    assert run.waited == [LONGEST, LONGEST]
    run.ready_after = 0.25
    look(run.executor)
    assert run.waited[2:] == [0.25]
    look(run.executor)
    assert len(run.waited) == 3  # what the task showed is dealt with at Ray Data's pace


def test_a_run_without_tasks_is_looked_at_at_once(run):
    look = UntilSomethingHappens().on_execution_step
    run.clock += 10 * BUSY
    run.tasks = []
    look(run.executor)
    assert run.waited == []
