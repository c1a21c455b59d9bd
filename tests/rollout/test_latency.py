"""What is carried out, step by step, when chunks come late."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import Task
from pipeline.report.results import condition_name
from pipeline.rollout.conditions import alter_agent
from pipeline.rollout.latency import LatencyAgent
from pipeline.rollout.plan import conditions_for, plan
from tests import base

NOTHING = Observation(*(np.zeros(n, np.float32) for n in (7, 7, 2, 6)))


class Counting:
    """Chunks of which action i of call k moves by k + i / 100, and closes the gripper from the second call on."""

    cameras = ("agentview",)
    n_action_steps = 4

    def __init__(self, horizon: int = 16) -> None:
        self._horizon, self._calls = horizon, 0

    def reset(self, task: Task, seed: int) -> None:
        self._calls = 0

    def act(self, obs: Observation) -> np.ndarray:
        self._calls += 1
        chunk = np.zeros((self._horizon, 7))
        chunk[:, 0] = self._calls + np.arange(self._horizon) / 100
        chunk[:, 6] = 1 if self._calls > 1 else -1
        return chunk


def play(agent: LatencyAgent, calls: int, task: Task) -> np.ndarray:
    agent.reset(task, 0)
    return np.concatenate([agent.act(NOTHING)[: agent.n_action_steps] for _ in range(calls)])


def test_it_waits_and_keeps_its_grip(task: Task) -> None:
    agent = LatencyAgent(Counting(), 0.1, in_the_meantime=False)
    assert agent.n_action_steps == 6, "two steps of waiting, four actions"
    played = play(agent, 3, task)
    np.testing.assert_allclose(
        played[:, 0], [0, 0, 1, 1.01, 1.02, 1.03, 0, 0, 2, 2.01, 2.02, 2.03, 0, 0, 3, 3.01, 3.02, 3.03]
    )
    assert played[:6, 6].tolist() == [-1] * 6 and played[6:8, 6].tolist() == [-1, -1], "open until it is told otherwise"
    assert played[12:14, 6].tolist() == [1, 1], "and closed while it holds something"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.05, [0, 1, 1.01, 1.02, 1.03, 2.01, 2.02, 2.03, 2.04, 3.01, 3.02, 3.03]),
        (0.2, [0, 0, 0, 0, 1, 1.01, 1.02, 1.03, 2.04, 2.05, 2.06, 2.07]),
    ],
)
def test_it_goes_on_with_the_chunk_before(seconds: float, expected: list[float], task: Task) -> None:
    """Every action is carried out at the step it was meant for: action i of the chunk asked for at t, at t + i."""
    played = play(LatencyAgent(Counting(), seconds, in_the_meantime=True), 3, task)
    np.testing.assert_allclose(played[:, 0], expected)


def test_no_latency_changes_nothing_and_an_episode_begins_anew(task: Task) -> None:
    plain = np.concatenate([k + np.arange(4) / 100 for k in (1, 2)])
    for in_the_meantime in (False, True):
        agent = LatencyAgent(Counting(), 0.0, in_the_meantime)
        for _ in range(2):
            np.testing.assert_allclose(play(agent, 2, task)[:, 0], plain)


def test_what_cannot_be(task: Task, sim: Sim) -> None:
    with pytest.raises(ConfigError, match=r"latency of 0\.25 s is 5 control steps, but a chunk is asked for every 4"):
        alter_agent(Counting(), "latency_asynchronous", 0.25, sim)
    short = LatencyAgent(Counting(horizon=4), 0.1, in_the_meantime=True)
    with pytest.raises(ConfigError, match="too short to go on for 2 steps after 4 actions"):
        play(short, 2, task)


@pytest.mark.parametrize(
    ("amount", "wrong"),
    [((0.25, 0.05), "a latency of 0.25 s is 5 control steps"), (0.1, "too short to go on for 2 steps after 4 actions")],
)
def test_what_cannot_be_is_told_before_anything_runs(
    amount: float | tuple[float, ...], wrong: str, task: Task, sim: Sim
) -> None:
    params = base.params()
    cfg = replace(params.eval_libero, conditions={"latency": 0.25, "latency_asynchronous": amount})
    with pytest.raises(ConfigError, match=wrong):
        plan("random", (task,), sim, cfg, encoder=params.embed.encoder, demos=Path("none"), n_action_steps=4)


def test_chunks_may_be_lists(task: Task) -> None:
    class Listing(Counting):
        def act(self, obs: Observation) -> list[list[float]]:  # type: ignore[override]
            return super().act(obs).tolist()

    for in_the_meantime in (False, True):
        played = (play(LatencyAgent(agent, 0.1, in_the_meantime), 3, task) for agent in (Listing(), Counting()))
        np.testing.assert_array_equal(*played)


def test_each_latency_is_a_condition(task: Task, sim: Sim) -> None:
    asked = {"light": 0.5, "latency": (0.05, 0.1), "blank_cameras": None}
    found = conditions_for("policy", asked)
    assert found == {"light": 0.5, "latency=0.05": 0.05, "latency=0.1": 0.1, "blank_cameras": None}
    close = conditions_for("policy", {"light": (0.5, 0.5000001)})
    assert list(close) == ["light=0.5", "light=0.5000001"], "each by a name of its own"
    assert condition_name(*list(close.items())[1]) == "light, 0.5000001"
    late = alter_agent(Counting(), "latency=0.1", found["latency=0.1"], sim)
    assert late.n_action_steps == 6
    assert condition_name("latency=0.1", 0.1) == "latency, 0.1"
