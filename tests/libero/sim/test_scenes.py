"""LIBERO's own scenes: every task of the five suites builds, settles where it should, and is drawn."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.suites import RESULT, measure_all
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import SUITES, init_states, tasks

pytestmark = pytest.mark.sim

SIM = Sim(None, "full", "auto", 128, 10, 0)
MOVABLE = ("akita_black_bowl_1", "plate_1", "glazed_rim_porcelain_ramekin_1", "cookies_1")
MEMORY_MB = 900

# World positions of MOVABLE ten steps after init state 0 with seed 0, in LIBERO's own environment under mujoco 3.3.2.
SETTLED = (
    ((-0.0635, 0.2020, 0.8984), (0.0534, 0.2052, 0.9025), (-0.1974, 0.1891, 0.8993), (0.0579, 0.0264, 0.9094)),
    ((-0.1948, 0.3152, 0.8984), (0.0698, 0.1882, 0.9025), (-0.1858, 0.1938, 0.8993), (0.0643, 0.0315, 0.9094)),
    ((-0.0750, 0.0150, 0.8984), (0.0716, 0.2004, 0.9025), (-0.2014, 0.1870, 0.8993), (0.0767, 0.0375, 0.9094)),
    ((0.0679, 0.0237, 0.9172), (0.0698, 0.1900, 0.9025), (-0.2139, 0.2109, 0.8993), (0.0678, 0.0239, 0.9094)),
    ((0.0851, -0.1300, 1.0626), (0.0551, 0.2097, 0.9025), (-0.2024, 0.1918, 0.8993), (0.0728, 0.0408, 0.9094)),
    ((-0.2114, 0.2022, 0.9344), (0.0735, 0.1855, 0.9025), (-0.1969, 0.2016, 0.8993), (0.0568, 0.0425, 0.9094)),
    ((0.1373, -0.0705, 0.8984), (0.0689, 0.1944, 0.9025), (-0.2133, 0.1895, 0.8993), (0.0734, 0.0331, 0.9094)),
    ((-0.2621, -0.1314, 0.9289), (0.0601, 0.2050, 0.9025), (-0.1932, 0.2088, 0.8993), (0.0568, 0.0234, 0.9094)),
    ((0.0071, 0.2982, 0.8984), (0.0552, 0.1890, 0.9025), (-0.1949, 0.2097, 0.8993), (0.0701, 0.0446, 0.9094)),
    ((0.0390, -0.2652, 1.1264), (0.0482, 0.2147, 0.9025), (-0.2020, 0.2048, 0.8993), (0.0667, 0.0282, 0.9094)),
)


@contextmanager
def settled(task_id: int) -> Iterator[Simulator]:
    """The task of libero_spatial ten steps after its init state 0."""
    task = tasks("libero_spatial", [task_id])[0]
    with Simulator(task, SIM) as simulator:
        simulator.reset(init_states(task)[0], seed=0)
        yield simulator


@pytest.mark.slow
@pytest.mark.parametrize("task_id", range(10))
def test_objects_settle_where_liberos_do(task_id: int) -> None:
    with settled(task_id) as simulator:
        places = np.array([simulator.data.body(f"{name}_main").xpos for name in MOVABLE])
        np.testing.assert_allclose(places, SETTLED[task_id], atol=2e-4)
        assert not simulator.success()


@pytest.fixture(scope="module")
def drawer_task() -> Iterator[Simulator]:
    with settled(4) as simulator:
        yield simulator


def test_a_bowl_put_on_the_plate_is_success(drawer_task: Simulator) -> None:
    before = drawer_task.state()
    bowl, plate = (drawer_task.data.joint(f"{name}_joint0").qpos for name in MOVABLE[:2])
    bowl[:3] = plate[:3] + np.array([0.004, 0, 0.03])
    assert not drawer_task.success()  # in the air
    for _ in range(6):
        drawer_task.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert drawer_task.success()
    drawer_task.set_state(before)


def test_the_drawer_slides_and_tells_that_it_is_open(drawer_task: Simulator) -> None:
    joint = "wooden_cabinet_1_top_level"
    region = drawer_task.env.object_states_dict["wooden_cabinet_1_top_region"]
    assert drawer_task.model.joint(joint).range == pytest.approx((-0.16, 0.01))
    assert region.is_open() and not region.is_close()
    assert region.check_contain(drawer_task.env.object_states_dict["akita_black_bowl_1"])
    before = drawer_task.state()
    drawer_task.data.joint(joint).qpos[0] = 0.002
    assert region.is_close() and not region.is_open()
    drawer_task.set_state(before)


def test_the_picture_has_liberos_colours(drawer_task: Simulator) -> None:
    """Means over patches of an agentview image; expected: those of an observation that openvla-oft publishes."""
    image = drawer_task.observe().images["agentview"] / 1.0

    def patch(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return image[top:bottom, left:right].mean(axis=(0, 1))

    assert patch(114, 123, 34, 91) == pytest.approx((192, 176, 156), abs=6)  # table
    assert patch(6, 34, 3, 28) == pytest.approx((108, 107, 103), abs=5)  # wall


def check(suite: str, chosen: list[int]) -> None:
    """Build, reset, settle, step and draw tasks, each in a process of its own."""
    rows = measure_all([(suite, task_id) for task_id in chosen], SIM, 1)
    for row in rows:
        assert row.peak_mb <= MEMORY_MB, row
        assert 0 < row.difference < 6, row
    measured = {(row["suite"], row["task"]): row["moved"] for row in json.loads(RESULT.read_text())["tasks"]}
    for row in rows:
        assert list(row.moved) == measured[suite, row.task], "what docs/suites.md says to slide while settling"


@pytest.mark.slow
@pytest.mark.parametrize("suite", [pytest.param(s, marks=[pytest.mark.smoke] * (s == "libero_10")) for s in SUITES])
def test_a_task_of_each_suite_runs(suite: str) -> None:
    check(suite, [1])


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("suite", SUITES)
def test_every_task_runs(suite: str) -> None:
    check(suite, [task.id for task in tasks(suite)])
