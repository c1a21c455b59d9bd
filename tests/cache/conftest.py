"""Stores that several test modules read."""

from pathlib import Path

import pytest

from cache.build import build
from tests.cache.synthetic import TEXT, MakeFake, make_plan


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store, not to be changed."""
    folder = tmp_path_factory.mktemp("sound")
    build(make_plan(), TEXT, MakeFake(), folder / "s.zarr", folder / "work")
    return folder / "s.zarr"
