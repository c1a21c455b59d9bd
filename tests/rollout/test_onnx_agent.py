"""An exported policy acts in an episode as the policy itself does, and refuses other pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.inference.export import export
from pipeline.libero.suites import Task
from pipeline.rollout.agent import Agent, PolicyAgent
from pipeline.rollout.onnx_agent import Int8OnnxAgent, OnnxAgent
from tests.encode import tiny
from tests.inference import exports


@pytest.mark.slow
def test_it_is_an_agent_that_acts_as_the_policy_does(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register(tmp_path)
    clip = exports.encoder()
    bundle = exports.policy(clip, tmp_path / "policy", n_obs_steps=2, n_action_steps=2)
    export(bundle, clip, [], tmp_path / "runs/flow/onnx", int8=True)
    monkeypatch.chdir(tmp_path)
    made: list[Callable[[], OnnxAgent]] = [
        OnnxAgent,
        lambda: OnnxAgent("runs/flow/onnx", exports.SIM, n_action_steps=1),
    ]
    for make_agent in made:
        agent = make_agent()
        assert isinstance(agent, Agent) and agent.cameras == exports.CAMERAS
        theirs = PolicyAgent(bundle, clip, exports.SIM, n_action_steps=agent.n_action_steps)
        for seed in (4, 5):
            agent.reset(task, seed)
            theirs.reset(task, seed)
            for i in range(3):
                obs = exports.observation(i)
                np.testing.assert_allclose(agent.act(obs), theirs.act(obs), rtol=0, atol=1e-4)
    rounded = Int8OnnxAgent("runs/flow/onnx", exports.SIM)
    chunks = []
    for each in (rounded, theirs):
        each.reset(task, 4)
        chunks.append(each.act(exports.observation(0)))
    assert 1e-4 < np.abs(chunks[0][:2] - chunks[1][:2]).max() < 0.2, "of 8 bits, and much the same"
    with pytest.raises(DataError, match=r"pictures of sim\.render 'fast'; the simulator is to draw 'full'"):
        OnnxAgent("runs/flow/onnx", replace(exports.SIM, render="full"))
