"""The evaluation's real main() with others' policies: a server that is killed on the way, and a class."""

import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError, PipelineError
from pipeline.rollout import remote
from pipeline.rollout.plan import plan
from pipeline.rollout.results import read_records
from stages import eval_libero
from tests import base
from tests.server.serving import Known, serving, serving_elsewhere

CODE = """
from pipeline.rollout.baselines import NoopAgent

class Mine(NoopAgent):
    cameras = ("eye_in_hand",)
    def __init__(self, path):
        super().__init__(n_action_steps=int(open(path).read()))
    def act(self, obs):
        assert list(obs.images) == ["eye_in_hand"]
        return super().act(obs)
"""


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """The stage's arguments for small settings."""
    p = base.params()
    small = replace(
        p,
        sim=replace(p.sim, image_size=32, settle_steps=2),
        eval_libero=replace(p.eval_libero, episodes=3, max_steps=9, videos_per_task=0, conditions={}),
        compute=replace(p.compute, scheduler="serial"),
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(small)))))
    return ["--params", str(tmp_path / "params.yaml"), "--scratch", str(tmp_path / "scratch")]


def results(out: Path) -> list[dict]:
    return [record.result() for record in read_records(out / "episodes.jsonl")]


@pytest.mark.sim
@pytest.mark.slow
def test_a_server_that_is_killed_costs_no_episode(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_elsewhere() as (process, address):
        agent = ["--agent", f"ws://{address}"]
        eval_libero.main([*argv, *agent, "--out", str(tmp_path / "whole"), "--export", "lerobot"])
        expected = results(tmp_path / "whole")

        def kill_in_mid_evaluation() -> None:
            while not any(p.stat().st_size for p in (tmp_path / "scratch").glob("*/episodes.jsonl")):
                time.sleep(0.01)
            os.kill(process, signal.SIGKILL)

        threading.Thread(target=kill_in_mid_evaluation, daemon=True).start()
        monkeypatch.setattr(remote, "RECONNECT_S", 0.0)
        with pytest.raises(PipelineError, match=r"ws://.*no policy server answers"):
            eval_libero.main([*argv, *agent, "--out", str(tmp_path / "killed")])
    (journal,) = (tmp_path / "scratch").glob("*/episodes.jsonl")
    done = journal.read_text().splitlines()
    assert 1 <= len(done) < 3 and not (tmp_path / "killed").exists()
    with serving_elsewhere(port=int(address.split(":")[1])):
        eval_libero.main([*argv, *agent, "--out", str(tmp_path / "killed")])
    assert results(tmp_path / "killed") == expected
    kept = {(r.episode, r.seconds) for r in read_records(tmp_path / "killed/episodes.jsonl")}
    assert {(each["episode"], each["seconds"]) for each in map(json.loads, done)} <= kept, "none was run again"
    tree = json.loads((tmp_path / "killed/eval.json").read_text())
    assert tree["protocol"]["agent"]["url"] == f"ws://{address}" and tree["n"] == 3
    assert tree["protocol"]["agent"]["metadata"]["horizon"] == 6 and tree["init_states_demonstrated"] is None
    told = json.loads((tmp_path / "whole/eval_info.json").read_text())
    assert told["per_group"]["libero_spatial"]["n_episodes"] == 3
    assert told["per_task"][0]["metrics"]["successes"] == [r["outcome"] == "success" for r in expected]


@pytest.mark.sim
@pytest.mark.slow
def test_a_class_is_judged_and_its_results_exported(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebodys_robot.py").write_text(CODE)
    (tmp_path / "steps.txt").write_text("4")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    agent = ["--agent", "somebodys_robot:Mine", "--policy", "steps.txt", "--set", "eval_libero.episodes=1"]
    eval_libero.main([*argv, *agent, "--export", "lerobot"])
    out = tmp_path / "results/somebodys_robot-Mine"
    (record,) = read_records(out / "episodes.jsonl")
    assert (record.outcome, record.steps, record.policy_calls) == ("failure", 9, 3)
    identity = json.loads((out / "eval.json").read_text())["protocol"]["agent"]
    assert identity["name"] == "somebodys_robot:Mine" and identity["policy"] == "steps.txt"
    assert json.loads((out / "eval_info.json").read_text())["overall"]["pc_success"] == 0.0
    eval_libero.main([*argv, *agent])
    assert not (out / "eval_info.json").exists(), "results are replaced whole"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--agent", "expertt"], r"--agent expertt: not known\. Did you mean 'expert'\? Others: ws://host:port"),
        (["--agent", "nowhere:Agent"], "cannot import nowhere"),
        (["--agent", "ws://127.0.0.1:1"], r"ws://127\.0\.0\.1:1: no policy server answers"),
        (["--agent", "ws://127.0.0.1:1", "--set", "eval_libero.sampling_steps=3"], r"sampling_steps is 3, which ws://"),
        (["--agent", "a:B", "--set", "eval_libero.n_action_steps=3"], "n_action_steps is 3, which a:B decides itself"),
        (["--agent", "ws://u:p@h:1?k", "--policy", "x"], r"--policy x: --agent ws://h:1 takes none\. Leave one of"),
        (["--agent", "random", "--policy", "x"], "--policy x: --agent random takes none"),
        (["--agent", "random", "--agent-id", "x"], "--agent-id 'x': names the policy behind a server.*is random"),
        (["--agent", "ws://127.0.0.1:1", "--agent-id", " "], "give a text that is not empty"),
    ],
)
def test_an_agent_that_is_not_there_is_told_at_once(argv: list[str], changes: list[str], said: str) -> None:
    with pytest.raises((ConfigError, PipelineError), match=said):
        eval_libero.main([*argv, *changes])


def test_a_server_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("pipeline.server.websocket.metadata", lambda described, inputs: {})
    p = base.params()
    with serving(Known()) as (_, address):

        def planned(agent_id: str | None) -> Any:
            cfg, encoder = p.eval_libero, p.embed.encoder
            given = {"encoder": encoder, "demos": Path("demos"), "n_action_steps": 1, "device": "cpu"}
            return plan(f"ws://me:secret@{address}", (), p.sim, cfg, agent_id=agent_id, **given)

        unknown = planned(None)
        assert not unknown.resumable and "the server's metadata is empty" in caplog.text
        assert "secret" not in json.dumps(unknown.identity) and unknown.identity["name"] == f"ws://{address}"
        caplog.clear()
        known = planned("act-1")
        assert known.resumable and known.identity["id"] == "act-1"
        assert "metadata is empty" not in caplog.text


def test_results_are_named_by_their_agent() -> None:
    names = {"policy": "flow", "noop": "noop", "ws://10.0.0.1:80": "10.0.0.1-80", "a.b:C": "a.b-C", "wss://h/p": "h-p"}
    names |= {"ws://me:secret@h:1/?key=secret": "h-1-"}
    assert {agent: eval_libero.label(agent) for agent in names} == names
