"""From a demonstration to an action: what training reads is what the policy is given in the simulator, and it works."""

import json
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from cache.reader import open_store
from pipeline.config import Params
from pipeline.encode.clip import ClipEncoder
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import Origin, write_demos
from pipeline.libero.expert import Noise, attempt
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import Task, init_states
from pipeline.policy import bundle
from pipeline.policy.network import PolicyNetwork
from pipeline.rollout.agent import PolicyAgent
from pipeline.rollout.episode import EpisodeSettings, run_episode
from pipeline.rollout.results import read_records
from pipeline.train.data import Batch, FeatureSpec, load_stores
from stages import embed, eval_libero, train_flow
from tests import base
from tests.imports import ROOT

pytestmark = [pytest.mark.sim, pytest.mark.slow]
INIT_ROW = 2
TRAINING_STEPS = 500
F16 = 5e-3  # of features, which reach 3: a batch of two images is not summed as one of many


@dataclass(frozen=True)
class Project:
    """What one demonstration has become: its file, the store, the policy that was trained on it."""

    root: Path
    params: Params
    argv: list[str]

    @property
    def store(self) -> Path:
        return self.root / "embeddings/libero_spatial.zarr"

    def agent(self) -> PolicyAgent:
        return PolicyAgent.load(self.root / "run/policy", self.params.embed.encoder, self.params.sim)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Project:
    """One demonstration without noise, embedded, and a small policy that has learnt it by heart.

    Its head is a regression: a flow takes many more steps to learn a single trajectory as exactly.
    """
    root = tmp_path_factory.mktemp("chain")
    p = base.params()
    policy = replace(p.policy, head="l1", condition_dim=128, head_width=256, head_layers=2, feature_noise=0.0)
    params = replace(
        p,
        sim=replace(p.sim, image_size=64),
        policy=policy,
        train_flow=replace(
            p.train_flow,
            epochs=TRAINING_STEPS,
            batch_size=256,
            learning_rate=1e-3,
            val_fraction=0.0,
            ema_decay=0.0,
            metrics_every_epochs=TRAINING_STEPS,
            checkpoint_every_epochs=TRAINING_STEPS,
        ),
        eval_libero=replace(p.eval_libero, first_init_state=INIT_ROW, episodes=1, videos_per_task=0, conditions={}),
        compute=replace(p.compute, scheduler="serial"),
    )
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(params)))))
    with Simulator(task, params.sim) as simulator:
        made = attempt(simulator, Origin(INIT_ROW, params.sim.seed, 0), Noise(0.0, 0.0), diversity=0.0)
    assert made.episode is not None
    write_demos(demo_file(root / "demos", task), task, [made.episode], params.sim)
    argv = ["--params", str(path)]
    demos, embeddings, run = (str(root / name) for name in ("demos", "embeddings", "run"))
    embed.main([*argv, "--suite", task.suite, "--demos", demos, "--out", embeddings, "--scratch", str(root / "s1")])
    train_flow.main([*argv, "--embeddings", embeddings, "--out", run, "--scratch", str(root / "s2"), "--track"])
    return Project(root, params, argv)


Inputs = tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]


def given(agent: PolicyAgent, monkeypatch: pytest.MonkeyPatch) -> list[Inputs]:
    """Return a list to which every call of the agent's network adds images, text and proprioception."""
    network, calls = agent.policy.network, list[Inputs]()
    condition = network.condition
    monkeypatch.setattr(network, "condition", lambda *inputs: calls.append(inputs) or condition(*inputs))
    return calls


def far(calls: list[Inputs], batch: Batch) -> float:
    """Return the greatest difference of image features between the last call and a training batch of one row."""
    images = calls[-1][0]
    assert list(images) == list(batch.images)
    return max(float((images[name] - batch.images[name].float()).abs().max()) for name in images)


def test_training_reads_what_the_policy_is_given_in_the_same_state(
    project: Project, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i - 1 of the store is state i, before action i: LIBERO records an observation after its action."""
    with h5py.File(demo_file(project.root / "demos", task)) as file:
        states, actions = (file["data/demo_0"][name][:] for name in ("states", "actions"))
    stores = [(task.suite, open_store(project.store), None)]
    table = load_stores(stores, FeatureSpec.by(project.params.policy), project.params.train_flow.action)
    assert len(table) == len(actions) - 1
    agent = project.agent()
    calls = given(agent, monkeypatch)
    with Simulator(task, project.params.sim, agent.cameras) as simulator:
        agent.reset(task, 0)
        simulator.reset(init_states(task)[INIT_ROW], project.params.sim.seed)
        for i, action in enumerate(actions):
            np.testing.assert_allclose(simulator.state(), states[i], atol=1e-9)
            if i in (1, 11, 51, 71):
                obs = simulator.observe()
                agent.act(obs)
                row, before, after = (table.batch(torch.tensor([max(k, 0)]), 16) for k in (i - 1, i - 2, i))
                assert far(calls, row) < F16
                assert torch.equal(calls[-1][1], row.text)
                for name, signal in row.proprio.items():
                    torch.testing.assert_close(calls[-1][2][name], signal, atol=1e-5, rtol=0)
                np.testing.assert_allclose(row.actions[0, 0], action, atol=1e-6)

                assert far(calls, after) > 10 * F16, "another shift would be seen"
                assert i == 1 or far(calls, before) > 10 * F16
                agent.act(replace(obs, images={name: image[::-1].copy() for name, image in obs.images.items()}))
                assert far(calls, row) > 10 * F16, "as would images that are upside-down"
                agent.act(replace(obs, images=dict(zip(agent.cameras, reversed(obs.images.values()), strict=True))))
                assert far(calls, row) > 10 * F16, "and cameras in another order"
            simulator.step(action)


def test_a_policy_that_has_learnt_a_demonstration_does_it_again(project: Project, tmp_path: Path) -> None:
    paths = {"policy": project.root / "run/policy", "out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    eval_libero.main([*project.argv, *(word for name, path in paths.items() for word in (f"--{name}", str(path)))])
    (record,) = read_records(tmp_path / "out/episodes.jsonl")
    assert (record.outcome, record.init_row) == ("success", INIT_ROW)


def test_one_action_is_a_short_way_from_the_episode_to_the_network(project: Project, task: Task) -> None:
    """At most ten calls in six files: docs/architecture.md, section "One action", lists them."""
    loaded = bundle.load(project.root / "run/policy")
    flow = PolicyNetwork(replace(loaded.network.arch, head="flow"))
    agent = PolicyAgent(replace(loaded, network=flow), ClipEncoder(project.params.embed.encoder), project.params.sim)
    stacks: list[traceback.StackSummary] = []
    layer = flow.head.velocity.net[1]
    layer.register_forward_hook(lambda *_: stacks.append(traceback.extract_stack()))
    settings = EpisodeSettings(INIT_ROW, max_steps=1, timeout_s=100.0, seed=0, sim_seed=0)
    with Simulator(task, project.params.sim, agent.cameras) as simulator:
        run_episode(simulator, agent, task, 0, settings)
    assert len(stacks) == flow.arch.sampling_steps
    for stack in stacks:
        ours = [frame for frame in stack if Path(frame.filename).is_relative_to(ROOT / "pipeline")]
        chain = [(Path(frame.filename).name, frame.name) for frame in ours]
        chain = chain[chain.index(("episode.py", "run_episode")) :]
        assert chain[-1] == ("velocity.py", "velocity_at")
        assert len(chain) <= 10 and len({file for file, _ in chain}) <= 6, chain
