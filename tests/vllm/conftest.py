"""The vLLM engine on the bundled model: `make test-vllm` has an environment with vLLM's CPU build for it."""

import importlib.util

import pytest

collect_ignore = [] if importlib.util.find_spec("vllm") else ["test_vllm.py"]


@pytest.fixture(scope="session", autouse=True)
def _cluster(cluster):
    """A real Ray head that all commands join."""
