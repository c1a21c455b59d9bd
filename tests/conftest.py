"""What holds for all tests, and the simulator for those that need one."""

import os
from pathlib import Path

import pytest

from pipeline.libero.settings import Sim
from pipeline.libero.suites import Task, tasks
from tests.environments import environment

# As in the Makefile: beside anything else on the machine, threads that spin while they wait make minutes of seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the file that takes longest first, so that the workers end together; skip what needs a GPU without one."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")
    import torch  # after the line above, which OpenMP reads when torch loads it

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session")
def sim() -> Sim:
    return Sim(None, "fast", "auto", 64, 3, 0)


@pytest.fixture(scope="session")
def task() -> Task:
    return tasks("libero_spatial", [0])[0]


@pytest.fixture(scope="session")
def lerobot_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with LeRobot: the one that LEROBOT_PYTHON names, or in an environment that is made, of some 8 GB."""
    if named := os.environ.get("LEROBOT_PYTHON"):
        return Path(named).absolute()
    packages = ("lerobot==0.4.4", "websockets", "msgpack")
    return environment(tmp_path_factory.mktemp("lerobot") / "env", *packages, seconds=900)
