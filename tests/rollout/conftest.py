"""The simulator for tests."""

import pytest

from pipeline.config import Sim
from pipeline.libero.suites import Task, tasks


@pytest.fixture(scope="session")
def sim() -> Sim:
    return Sim(None, "fast", "auto", 64, 3, 0)


@pytest.fixture(scope="session")
def task() -> Task:
    return tasks("libero_spatial", [0])[0]
