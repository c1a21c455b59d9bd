"""LIBERO under gymnasium's API: its checker is content, and an episode is the engine's own."""

import hashlib
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pipeline.errors import PipelineError
from pipeline.libero.gym_env import LiberoEnv, to_observation
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import Task
from pipeline.rollout.baselines import RandomAgent
from pipeline.rollout.episode import EpisodeSettings, episode_seed, run_episode

CAMERAS = ("agentview", "eye_in_hand")


def make(sim: Sim, **kwargs) -> gymnasium.Env:
    return gymnasium.make("pipeline.libero.gym_env:Libero-v0", sim=sim, suite="libero_spatial", task=0, **kwargs)


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning:gymnasium")
def test_gymnasium_has_nothing_to_complain_of(sim: Sim) -> None:
    env = make(sim, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=False)
    obs, info = env.reset(options={"init_row": 3})
    assert info == {
        "success": False,
        "init_row": 3,
        "language": "pick up the black bowl between the plate and the ramekin and place it on the plate",
    }
    picture = env.render()
    np.testing.assert_array_equal(picture, obs["agentview"])
    assert env.reset()[1]["init_row"] == 4, "each reset takes the next row"
    assert env.reset(seed=1)[1]["init_row"] == 0, "a seed starts over"
    assert env.reset(options={"init_row": 49})[1]["init_row"] == 49
    assert env.reset()[1]["init_row"] == 0
    with pytest.raises(PipelineError, match="row 50"):
        env.reset(options={"init_row": 50})
    env.close()


@pytest.mark.sim
@pytest.mark.slow
def test_an_episode_is_the_engines(sim: Sim, task: Task) -> None:
    settings = EpisodeSettings(first_init_state=2, max_steps=10, timeout_s=120.0, seed=5, sim_seed=sim.seed)
    agent = RandomAgent(4, CAMERAS)
    with Simulator(task, sim, CAMERAS) as simulator:
        record = run_episode(simulator, agent, task, 1, settings)

    env = make(sim, first_init_state=2, max_steps=10)
    world = env.unwrapped
    assert isinstance(world, LiberoEnv)
    env.reset()
    obs, info = env.reset()
    assert info["init_row"] == record.init_row == 3
    agent.reset(world.task, episode_seed(5, task, 1))
    ends: list[tuple[bool, bool]] = []
    while not ends or not any(ends[-1]):
        for action in agent.act(to_observation(obs))[: agent.n_action_steps]:
            obs, reward, terminated, truncated, info = env.step(action)
            ends.append((terminated, truncated))
            assert reward == 0 and not info["success"]
            if terminated or truncated:
                break
    assert len(ends) == record.steps == 10
    assert ends[-1] == (False, True) and not any(map(any, ends[:-1])), "truncated at the limit, not before"
    digest = hashlib.sha256(world._simulator.state().tobytes()).hexdigest()[:16]
    assert digest == record.final_state
    env.close()


@pytest.mark.sim
def test_success_terminates(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(sim, max_steps=3)
    env.reset()
    monkeypatch.setattr(Simulator, "step", lambda self, action: True)
    _, reward, terminated, truncated, info = env.step(np.zeros(7, np.float32))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    env.close()


@pytest.mark.sim
@pytest.mark.slow
def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    examples = re.findall(r"```python\n(.*?)```", (root / "docs/evaluation.md").read_text(), re.S)
    (example,) = (code for code in examples if "gym" in code)
    monkeypatch.chdir(root)
    names: dict = {}
    exec(example, names)
    assert set(names["obs"]) == {"agentview", "eye_in_hand", "joint_pos", "ee_pose", "gripper", "ee_wrench"}
    assert names["info"]["init_row"] == 30
    names["env"].close()


def test_a_row_that_the_task_lacks_is_refused_at_once(sim: Sim) -> None:
    with pytest.raises(PipelineError, match="initial states 0 to 49"):
        make(sim, first_init_state=50)
