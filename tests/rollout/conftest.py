"""The simulator for tests: the embedded assets, or LIBERO's own from the directory that $LIBERO_ASSETS names."""

import os

import pytest

from pipeline.config import Sim
from pipeline.libero.suites import Task, tasks


@pytest.fixture(scope="session")
def sim() -> Sim:
    path = os.environ.get("LIBERO_ASSETS")
    return Sim("official" if path else "embedded", path, "fast", "auto", 64, 3, 0)


@pytest.fixture(scope="session")
def task() -> Task:
    return tasks("libero_spatial", [0])[0]
