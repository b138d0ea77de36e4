"""Events are lines of JSON, one an event, whatever the doi."""

import json
import logging

import pytest

from qaray.run import events
from qaray.run.directory import Run


@pytest.fixture
def fresh(monkeypatch):
    """The logger as a new process finds it."""

    def logger(level):
        monkeypatch.setenv("QARAY_LOG_LEVEL", level)
        events._logger.cache_clear()
        logging.getLogger("qaray.events").handlers.clear()

    yield logger
    events._logger.cache_clear()
    logging.getLogger("qaray.events").handlers.clear()


def test_an_event_is_a_line(tmp_path, fresh, capsys):
    fresh("INFO")
    events.log_event("rejected", Run.at(str(tmp_path / "first")), "generate", 'a"\n\ud800', reason="over_length")
    events.log_event("answered", Run.at(str(tmp_path / "first")), "generate", "b", logging.DEBUG)
    events.log_event("rejected", Run.at(str(tmp_path / "first")), "ingest", None)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["run"] == str(tmp_path / "first")
    assert (first["event"], first["doi"], first["reason"]) == ("rejected", 'a"\n\ud800', "over_length")
    assert first["time"].endswith("Z")
    assert first["level"] == "WARNING"
    assert second["doi"] is None


@pytest.mark.parametrize(("level", "lines"), [("DEBUG", 2), ("OFF", 0)])
def test_the_level_is_the_environments(tmp_path, fresh, capsys, level, lines):
    fresh(level)
    run = Run.at(str(tmp_path))
    events.log_event("rejected", run, "generate", "x" * 10_000)
    events.log_event("answered", run, "generate", "b", logging.DEBUG)
    written = capsys.readouterr().err.splitlines()
    assert len(written) == lines
    assert all(len(line) < 1000 for line in written)
