"""Runs on the session's cluster: see tests/commands.py."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cluster(cluster):
    """A real Ray head that all commands join."""
