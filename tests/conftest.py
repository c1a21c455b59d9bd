"""What holds for all tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the file that takes longest first, so that the workers end together."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")
