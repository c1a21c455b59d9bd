"""What holds for all tests."""

import os

import pytest

# As in the Makefile: beside anything else on the machine, threads that spin while they wait make minutes of seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the file that takes longest first, so that the workers end together."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")
