"""The policy behind its encoder: the same arithmetic as in training, and no policy that fits something else."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import EncoderParams, GridParams
from pipeline.errors import ConfigError, DataError
from pipeline.libero.installation import own_digest, picture_identity
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import Task, tasks
from pipeline.policy.bundle import PolicyBundle, PolicySpec, save
from pipeline.policy.network import PolicyNetwork
from pipeline.rollout.agent import Agent, PolicyAgent, check_pictures, policy_identity
from pipeline.rollout.baselines import NoopAgent, RandomAgent
from tests import base
from tests.encode import tiny
from tests.inference.make import bundle as make_bundle

SIM = Sim(None, "fast", "auto", 64, 3, 0)


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(EncoderParams("ViT-S-32", "seeded", 0, "fp32"))


@pytest.fixture(scope="module")
def bundle(encoder: ClipEncoder) -> PolicyBundle:
    return untrained(encoder)


def untrained(encoder: ClipEncoder, grid: GridParams | None = None, n_obs_steps: int = 1) -> PolicyBundle:
    """An untrained policy: what it does is arbitrary, but depends on all of its inputs."""
    arch = base.architecture(
        cameras=("agentview", "eye_in_hand"),
        proprio=("joint_pos", "ee_pose", "gripper"),
        patches=grid.size**2 if grid else None,
        n_obs_steps=n_obs_steps,
        image_dim=encoder.tokens[1] if grid else encoder.dim,
        text_dim=encoder.dim,
        head_width=16,
        horizon=4,
        sampling_steps=3,
    )
    torch.manual_seed(0)
    network = PolicyNetwork(arch).eval()
    data = {"sim": picture_identity(SIM)}
    spec = PolicySpec(arch, encoder.identity, "none", asdict(grid) if grid else None, TRANSFORM_ID, data, {})
    return PolicyBundle(spec, network, torch.device("cpu"), None)


def act(
    bundle: PolicyBundle,
    features: dict[str, np.ndarray],
    text: np.ndarray,
    state: dict[str, np.ndarray],
    generator: torch.Generator,
) -> np.ndarray:
    """What the network alone makes of these inputs, with the next noise."""
    noise = torch.randn(1, bundle.spec.architecture.horizon, 7, generator=generator)
    images, proprio = ({name: torch.tensor(x) for name, x in part.items()} for part in (features, state))
    return bundle.network.act(images, torch.tensor(text), proprio, noise)[0].numpy()


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (64, 64, 3), np.uint8) for camera in ("eye_in_hand", "agentview")}
    state = (rng.normal(size=k).astype(np.float32) for k in (7, 7, 2, 6))
    return Observation(*state, images=images)


def test_a_bundle_that_is_replaced_after_the_plan_is_not_judged(tmp_path: Path) -> None:
    tiny.register(tmp_path)
    path = make_bundle(tmp_path / "policy")
    planned = policy_identity(path)
    PolicyAgent.load(path, tiny.PARAMS, tiny.SIM, "cpu", None, None, planned)
    make_bundle(path, sampling_steps=2)  # the same weights, used otherwise
    with pytest.raises(DataError, match=r"policy: was replaced since the evaluation began\. Start the same command"):
        PolicyAgent.load(path, tiny.PARAMS, tiny.SIM, "cpu", None, None, planned)


def test_policy_agent_does_what_encoder_and_bundle_do_by_hand(
    bundle: PolicyBundle, encoder: ClipEncoder, task: Task
) -> None:
    agent = PolicyAgent(bundle, encoder, SIM)
    agent.reset(task, 12345)
    obs = observation()
    actions = [agent.act(obs), agent.act(obs)]
    generator = torch.Generator().manual_seed(12345)
    features = {c: encoder.images(obs.images[c][None]).astype(np.float32) for c in ("agentview", "eye_in_hand")}
    state = {"joint_pos": obs.joint_pos[None], "ee_pose": obs.ee_pose[None], "gripper": obs.gripper[None]}
    for got in actions:
        expected = act(bundle, features, encoder.text([task.language]), state, generator)
        assert got.shape == (4, 7)
        np.testing.assert_allclose(got, expected, atol=2e-3)  # a batch of two images against two of one
    assert np.abs(actions[0] - actions[1]).max() > 1e-3, "each call draws its own noise"


def test_a_policy_of_patch_tokens_with_a_history_sees_the_observations_before() -> None:
    grid = GridParams(7, -2)
    encoder = ClipEncoder(EncoderParams("ViT-S-32", "seeded", 0, "fp32"), grid=grid)
    bundle = untrained(encoder, grid, n_obs_steps=2)  # which executes 2 actions a call
    task = tasks("libero_spatial", [0])[0]
    seen = [observation(i) for i in range(4)]

    def expected(rows: list[int], generator: torch.Generator) -> np.ndarray:
        obs = [seen[i] for i in rows]
        images = {
            c: np.stack([encoder.forward(encoder.prepare(o.images[c][None]))["grid"][0] for o in obs])[None]
            for c in ("agentview", "eye_in_hand")
        }
        state = {name: np.stack([getattr(o, name) for o in obs])[None] for name in ("joint_pos", "ee_pose", "gripper")}
        return act(bundle, images, encoder.text([task.language]), state, generator)

    for steps, pairs in ((None, [[0, 0], [0, 1], [1, 2]]), (1, [[0, 0], [0, 1], [0, 2], [1, 3]])):
        agent = PolicyAgent(bundle, encoder, SIM, n_action_steps=steps)
        for _ in range(2):  # the second episode begins as the first one did
            agent.reset(task, 5)
            generator = torch.Generator().manual_seed(5)
            for i, rows in enumerate(pairs):
                np.testing.assert_allclose(agent.act(seen[i]), expected(rows, generator), atol=5e-3)


def test_as_many_actions_are_carried_out_as_asked(bundle: PolicyBundle, encoder: ClipEncoder) -> None:
    assert PolicyAgent(bundle, encoder, SIM, n_action_steps=3).n_action_steps == 3
    with pytest.raises(
        ConfigError, match=r"eval_libero\.n_action_steps is 5, but the policy gives chunks of 4 actions"
    ):
        PolicyAgent(bundle, encoder, SIM, n_action_steps=5)
    remembers = untrained(encoder, n_obs_steps=2)
    with pytest.raises(ConfigError, match="3, but the policy learnt from observations 2 steps apart"):
        PolicyAgent(remembers, encoder, SIM, n_action_steps=3)


def test_an_episode_depends_on_its_seed_and_task_only(bundle: PolicyBundle, encoder: ClipEncoder, task: Task) -> None:
    agent = PolicyAgent(bundle, encoder, SIM)

    def rollout(task: Task, seed: int) -> np.ndarray:
        agent.reset(task, seed)
        return np.stack([agent.act(observation(i)) for i in range(2)])

    first = rollout(task, 7)
    other = rollout(tasks("libero_spatial", [1])[0], 7)
    assert not np.array_equal(first, rollout(task, 8))
    assert not np.array_equal(first, other)
    assert np.array_equal(first, rollout(task, 7))


def test_a_policy_for_other_pictures_is_refused(bundle: PolicyBundle, encoder: ClipEncoder) -> None:
    check_pictures(bundle.spec, SIM)
    with pytest.raises(DataError, match=r"sim\.render 'fast'.*'full'.*Set sim\.render: fast"):
        PolicyAgent(bundle, encoder, replace(SIM, render="full"))
    with pytest.raises(DataError, match=r"sim\.image_size 64.*128"):
        check_pictures(bundle.spec, replace(SIM, image_size=128))
    # As every policy is that was trained on the low-poly scenes of before.
    elsewhere = replace(bundle.spec, data={"sim": picture_identity(SIM) | {"assets": "embedded"}})
    with pytest.raises(DataError, match=rf"assets with digest 'embedded'.*{own_digest()}.*sim\.assets_path.*dvc repro"):
        check_pictures(elsewhere, SIM)
    turned = replace(bundle.spec, transform="half-turn/v0")
    with pytest.raises(DataError, match=rf"'half-turn/v0'.*{TRANSFORM_ID}.*dvc repro train_flow"):
        check_pictures(turned, SIM)
    otherwise = replace(bundle.spec, data={**bundle.spec.data, "depth": "linear/v0"})
    with pytest.raises(DataError, match=r"depth drawn as 'linear/v0'"):
        check_pictures(otherwise, SIM)


def test_a_policy_of_another_encoder_is_refused(bundle: PolicyBundle, encoder: ClipEncoder) -> None:
    identity = {**bundle.spec.encoder, "weights_sha256": "0" * 64}
    with pytest.raises(DataError, match=r"another encoder.*weights_sha256: '0{64}' in the policy.*Set embed\.encoder"):
        PolicyAgent(replace(bundle, spec=replace(bundle.spec, encoder=identity)), encoder, SIM)


def test_baselines(task: Task) -> None:
    for agent in (NoopAgent(5), RandomAgent(5)):
        assert isinstance(agent, Agent)
        agent.reset(task, 1)
        actions = agent.act(observation())
        assert actions.shape == (5, 7) and np.abs(actions).max() <= 1
        agent.reset(task, 1)
        assert np.array_equal(agent.act(observation()), actions)
    assert (NoopAgent().act(observation()) == [0, 0, 0, 0, 0, 0, -1]).all()


def test_identity_is_of_what_moves_results(bundle: PolicyBundle, tmp_path) -> None:
    save(tmp_path / "a", bundle.network, bundle.spec)
    save(tmp_path / "b", bundle.network, replace(bundle.spec, provenance={"argv": ["elsewhere"]}))
    assert policy_identity(tmp_path / "a") == policy_identity(tmp_path / "b")
    with torch.no_grad():
        next(bundle.network.parameters()).add_(1)
    save(tmp_path / "b", bundle.network, bundle.spec)
    assert policy_identity(tmp_path / "a") != policy_identity(tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights\.safetensors: not found"):
        policy_identity(tmp_path / "b")
