"""Objects lie elsewhere, nothing else changes, and they stay where they were put."""

from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.libero.settings import Sim
from pipeline.libero.sim.displacement import REACH_M, displaced
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import init_states, tasks

RADIUS = 0.08
SIM = Sim(None, "fast", "auto", 32, 10, 0)


def places(simulator: Simulator) -> dict[str, np.ndarray]:
    """Return where the free bodies are (by qpos: xpos lags a substep behind)."""
    model = simulator.model
    free = [model.joint(j) for j in range(model.njnt) if model.jnt_type[j] == 0]
    return {j.name.removesuffix("_joint0"): simulator.data.qpos[j.qposadr[0] :][:3].copy() for j in free}


@pytest.fixture(scope="module", params=[0, 4, 5])
def simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with Simulator(tasks("libero_spatial", [request.param])[0], SIM, ()) as made:
        yield made


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_objects_on_the_table_are_moved_and_stay(simulator: Simulator, seed: int) -> None:
    states = init_states(simulator.task)
    simulator.reset(states[seed], 0)
    before = places(simulator)
    state = displaced(simulator, RADIUS, np.random.default_rng(seed))
    moved = places(simulator)
    shifts = {name: moved[name] - before[name] for name in before}
    assert all(np.abs(shift[:2]).max() <= RADIUS and abs(shift[2]) < 1e-9 for shift in shifts.values())
    stay = {4: {"akita_black_bowl_1", "akita_black_bowl_2"}}.get(simulator.task.id, set())  # drawer, cabinet
    assert {name for name, shift in shifts.items() if not shift.any()} == stay
    if simulator.task.id == 5:  # a bowl on the ramekin, the other on the cookies
        np.testing.assert_allclose(shifts["akita_black_bowl_1"], shifts["glazed_rim_porcelain_ramekin_1"], atol=1e-9)
        np.testing.assert_allclose(shifts["akita_black_bowl_2"], shifts["cookies_1"], atol=1e-9)
    base = simulator.data.xpos[simulator.model.body("robot0_base").id]
    for name in before.keys() - stay:
        assert REACH_M[0] <= np.linalg.norm((moved[name] - base)[:2]) <= REACH_M[1]

    simulator.reset(state, 0)  # settles
    for name, place in places(simulator).items():
        assert np.abs(place - moved[name]).max() < 0.005, f"{name} moved by itself: it had been put into something"
    simulator.reset(states[seed], 0)
    np.testing.assert_array_equal(displaced(simulator, RADIUS, np.random.default_rng(seed)), state)


@pytest.mark.sim
@pytest.mark.slow
def test_the_range_is_used(simulator: Simulator) -> None:
    """Over some draws the plate comes near both ends of the range."""
    state = init_states(simulator.task)[0]
    shifts = []
    for seed in range(12):
        simulator.reset(state, 0)
        before = places(simulator)["plate_1"]
        displaced(simulator, RADIUS, np.random.default_rng(seed))
        shifts.append(places(simulator)["plate_1"] - before)
    spread = np.stack(shifts)[:, :2]
    assert (spread.max(0) > 0.4 * RADIUS).all() and (spread.min(0) < -0.4 * RADIUS).all()
