"""Agents whose success is known beforehand have it, through the same episode as a policy."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import Origin, write_demos
from pipeline.libero.expert import Noise, attempt
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import Task
from pipeline.rollout.agent import Agent, Privileged
from pipeline.rollout.baselines import ExpertAgent, NoopAgent, RandomAgent, ReplayAgent, replay_identity, replayable
from pipeline.rollout.episode import EpisodeSettings, run_episode

SETTINGS = EpisodeSettings(first_init_state=30, max_steps=None, timeout_s=300.0, seed=3, sim_seed=0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, task: Task, sim: Sim) -> Path:
    """A demonstration from init row 7, with noise, among the fixtures of seed 5."""
    root = tmp_path_factory.mktemp("demos")
    with Simulator(task, sim) as simulator:
        made = attempt(simulator, Origin(7, 5, 0), Noise(0.2, 0.5), diversity=0.0)
    assert made.episode is not None
    write_demos(demo_file(root, task), task, [made.episode], sim)
    return root


@pytest.mark.sim
@pytest.mark.slow
def test_a_replay_does_what_the_demonstration_did(recorded: Path, task: Task, sim: Sim) -> None:
    with Simulator(task, sim) as simulator:
        record = run_episode(simulator, ReplayAgent(recorded), task, 0, SETTINGS)  # seed 0: other fixtures, another row
    assert record.outcome == "success"
    assert record.steps < 150


@pytest.mark.sim
@pytest.mark.slow
def test_a_replay_stands_among_the_demonstrations_fixtures(recorded: Path, task: Task, sim: Sim) -> None:
    agent = ReplayAgent(recorded)
    with Simulator(task, sim) as simulator:
        simulator.reset(None, 5)
        expected = simulator.model.body_pos.copy()
        simulator.reset(None, 0)
        assert np.abs(simulator.model.body_pos - expected).max() > 1e-3, "seeds place fixtures differently"
        agent.reset(task, 0)
        agent.begin(simulator, 0)
        np.testing.assert_allclose(simulator.model.body_pos, expected, atol=1e-6)
        with pytest.raises(DataError, match="none for episode=1"):
            agent.begin(simulator, 1)
        with pytest.raises(DataError, match="model_file"):
            simulator.place_fixtures("<mujoco><worldbody/></mujoco>")
        with pytest.raises(DataError, match="model_file"):
            simulator.place_fixtures("not XML")


@pytest.mark.sim
@pytest.mark.slow
def test_what_is_replayed_is_named_by_its_content(recorded: Path, task: Task, tmp_path: Path) -> None:
    assert replayable(recorded, (task,)) == 1
    name = f"{task.name}_demo.hdf5"
    identity = replay_identity(recorded, (task,))
    assert set(identity) == {name} and len(identity[name]) == 64
    other = tmp_path / task.suite / name
    other.parent.mkdir()
    other.write_bytes(demo_file(recorded, task).read_bytes() + b"x")
    assert replay_identity(tmp_path, (task,)) != identity
    other.unlink()
    with pytest.raises(DataError, match="dvc repro demos"):
        replay_identity(tmp_path, (task,))


def test_only_those_that_must_see_the_simulator() -> None:
    agents = (NoopAgent(), RandomAgent(), ExpertAgent(), ReplayAgent(Path()))
    assert all(isinstance(agent, Agent) for agent in agents)
    assert [isinstance(agent, Privileged) for agent in agents] == [False, False, True, True]
