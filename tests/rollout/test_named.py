"""A class of one's own as an agent."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.rollout.agent import Agent
from pipeline.rollout.named import is_named, make, plan_named
from tests.inference.exports import SIM

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

class Text(Still):
    cameras = "agentview"

class Endless(Still):
    n_action_steps = 0

class Alone(Still):
    def __init__(self):
        super().__init__()

class Needs(Still):
    def __init__(self, path):
        super().__init__(path)

class Looking(Still):
    def __init__(self, path=None, *, sim):
        super().__init__(path)
        self.sim = sim

class Known(Still):
    served = "a"
    @staticmethod
    def identity(path):
        return {"path": path, "served": Known.served}

class Unbound(Still):
    def identity(self):
        return {}

class Odd(Still):
    identity = staticmethod(lambda path: {1, 2})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """my_robot_agent.py, which can be imported."""
    path = tmp_path / "my_robot_agent.py"
    path.write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, path.stem, raising=False)
    return path


def test_a_class_that_does_not_ask_is_told_what_its_pictures_are(
    module: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual = replace(SIM, image_size=256, render="full")
    plan_named("my_robot_agent:Still", None, usual)
    assert "the policy gets pictures" not in caplog.text
    plan_named("my_robot_agent:Still", None, replace(usual, image_size=128))
    assert "the policy gets pictures of sim.image_size 128; if it learnt from LIBERO's own" in caplog.text


def test_a_class_is_made_into_an_agent(module: Path, tmp_path: Path) -> None:
    made, identity = plan_named("my_robot_agent:Still", None, SIM)
    agent = made()
    assert isinstance(agent, Agent) and agent.path is None  # type: ignore[attr-defined]
    assert (agent.cameras, agent.n_action_steps, identity["version"]) == (("agentview",), 3, None)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a").write_text("1")
    made, first = plan_named("my_robot_agent:Still", tmp_path / "weights", SIM)
    assert made().path == str(tmp_path / "weights")  # type: ignore[attr-defined]
    (tmp_path / "weights/a").write_text("2")
    _, second = plan_named("my_robot_agent:Still", tmp_path / "weights", SIM)
    assert first["policy"] == "weights" and first["policy_sha256"] != second["policy_sha256"]
    module.write_text(CODE + "\n")
    assert plan_named("my_robot_agent:Still", None, SIM)[1]["code_sha256"] != identity["code_sha256"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.agent:Agent", r"cannot import nowhere\.agent \(No module named 'nowhere'\).*PYTHONPATH"),
        ("my_robot_agent:Stil", r"has no class Stil\. Did you mean 'Still'\?"),
        ("my_robot_agent:np", "has no class np"),
        ("my_robot_agent:Lacking", "lacks n_action_steps, reset, act. An agent is a class with"),
        ("my_robot_agent:Blind", "its cameras: 'wrist' is none. Give some of agentview, eye_in_hand"),
        ("my_robot_agent:Text", "its cameras: 'agentview' is no tuple or list. Give some of agentview"),
        ("my_robot_agent:Endless", r"its n_action_steps is 0\. Give a whole number from 1"),
        ("my_robot_agent:Unbound", r"its identity is no static method\. Put @staticmethod above it"),
        ("my_robot_agent:Odd", r"its identity\(None\) failed .*It is to return plain JSON values"),
        ("builtins:int", r"builtins has no file\. Give a class of a module of your own"),
    ],
)
def test_what_is_no_agent_is_told(module: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made, _ = plan_named(name, None, SIM)
        made()


def test_a_path_that_is_not_there_is_told(module: Path) -> None:
    with pytest.raises(ConfigError, match=r"--policy /nowhere: not found"):
        plan_named("my_robot_agent:Still", Path("/nowhere"), SIM)
    assert make("my_robot_agent:Still", "x", SIM).path == "x"  # type: ignore[attr-defined]


def test_a_class_that_cannot_be_made_so_is_told_at_once(module: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made so \(too many positional arguments\)\. Leave --policy out"):
        plan_named("my_robot_agent:Alone", module, SIM)
    with pytest.raises(ConfigError, match=r"missing a required argument: 'path'\)\. Give --policy PATH"):
        plan_named("my_robot_agent:Needs", None, SIM)


def test_a_class_that_asks_for_it_is_told_how_the_simulator_draws(module: Path) -> None:
    for path in (None, module):
        made, _ = plan_named("my_robot_agent:Looking", path, SIM)
        assert made().sim == SIM  # type: ignore[attr-defined]


def test_a_module_that_fails_is_told(module: Path) -> None:
    module.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"importing my_robot_agent failed \(ZeroDivisionError"):
        plan_named("my_robot_agent:Still", None, SIM)


def test_a_class_says_what_it_alone_knows(module: Path) -> None:
    made, identity = plan_named("my_robot_agent:Known", None, SIM)
    assert identity["identity"] == {"path": None, "served": "a"}
    made()
    __import__("my_robot_agent").Known.served = "b"
    with pytest.raises(DataError, match="its code, or what it is made with, has changed since the evaluation began"):
        made()


def test_what_is_replaced_after_the_plan_is_not_judged(module: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1")
    made, _ = plan_named("my_robot_agent:Still", weights, SIM)
    made()
    weights.write_text("2")
    with pytest.raises(DataError, match=r"has changed since the evaluation began\. Start the same command again"):
        made()


def test_the_whole_package_is_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_robot_package"
    (package / "agents").mkdir(parents=True)
    for name in ("__init__.py", "helpers.py", "agents/__init__.py"):
        (package / name).write_text("")
    (package / "agents/mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)

    def digest() -> str:
        return plan_named("my_robot_package.agents.mine:Still", None, SIM)[1]["code_sha256"]

    before = digest()
    (package / "notes.txt").write_text("of no consequence")
    assert digest() == before
    (package / "helpers.py").write_text("GAIN = 2")
    assert digest() != before


def test_names_of_classes_are_told_from_others() -> None:
    assert is_named("a.b:C") and is_named("a:C")
    assert not any(map(is_named, ("policy", "ws://127.0.0.1:80", "a.b", ":C", "a:", "a b:C", "a:b.c")))
