"""A class of one's own as an agent."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.rollout.agent import Agent
from pipeline.rollout.named import is_named, make, plan_named

CODE = """
import numpy as np

class Still:
    cameras = ("agentview",)
    n_action_steps = 3
    def __init__(self, path=None):
        self.path = path
    def reset(self, task, seed):
        pass
    def act(self, obs):
        return np.zeros((3, 7))

class Lacking:
    cameras = ()

class Blind(Still):
    cameras = ("wrist",)

class Endless(Still):
    n_action_steps = 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """my_robot_agent.py, which can be imported."""
    path = tmp_path / "my_robot_agent.py"
    path.write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, path.stem, raising=False)
    return path


def test_a_class_is_made_into_an_agent(module: Path, tmp_path: Path) -> None:
    made, identity = plan_named("my_robot_agent:Still", None)
    agent = made()
    assert isinstance(agent, Agent) and agent.path is None  # type: ignore[attr-defined]
    assert (agent.cameras, agent.n_action_steps, identity["version"]) == (("agentview",), 3, None)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a").write_text("1")
    made, first = plan_named("my_robot_agent:Still", tmp_path / "weights")
    assert made().path == str(tmp_path / "weights")  # type: ignore[attr-defined]
    (tmp_path / "weights/a").write_text("2")
    _, second = plan_named("my_robot_agent:Still", tmp_path / "weights")
    assert first["policy"] == "weights" and first["policy_sha256"] != second["policy_sha256"]
    module.write_text(CODE + "\n")
    assert plan_named("my_robot_agent:Still", None)[1]["module_sha256"] != identity["module_sha256"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.agent:Agent", r"cannot import nowhere\.agent \(No module named 'nowhere'\).*PYTHONPATH"),
        ("my_robot_agent:Stil", r"has no class Stil\. Did you mean 'Still'\?"),
        ("my_robot_agent:np", "has no class np"),
        ("my_robot_agent:Lacking", "lacks n_action_steps, reset, act. An agent is a class with"),
        ("my_robot_agent:Blind", "its cameras has 'wrist'; they are some of agentview, eye_in_hand"),
        ("my_robot_agent:Endless", "its n_action_steps is 0, not a number of actions"),
    ],
)
def test_what_is_no_agent_is_told(module: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made, _ = plan_named(name, None)
        made()


def test_a_path_that_is_not_there_is_told(module: Path) -> None:
    with pytest.raises(ConfigError, match=r"--policy /nowhere: not found"):
        plan_named("my_robot_agent:Still", Path("/nowhere"))
    assert make("my_robot_agent:Still", "x").path == "x"  # type: ignore[attr-defined]


def test_names_of_classes_are_told_from_others() -> None:
    assert is_named("a.b:C") and is_named("a:C")
    assert not any(map(is_named, ("policy", "ws://127.0.0.1:80", "a.b", ":C", "a:", "a b:C", "a:b.c")))
