"""A policy for another robot: no unit, frame, width or range of LIBERO's is said of it, nor done to its inputs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.encode.clip import ClipEncoder
from pipeline.errors import DataError
from pipeline.inference.card import card
from pipeline.inference.codec import MessageError
from pipeline.inference.export import export
from pipeline.inference.policy import Policy
from pipeline.inference.recordings import demonstration
from pipeline.inference.runtime import OnnxPolicy
from pipeline.policy.bundle import load, load_spec
from pipeline.rollout.onnx_agent import OnnxAgent
from pipeline.rollout.remote import plan_remote
from pipeline.server.request import Inputs, parse
from tests import base
from tests.data import make
from tests.encode import tiny
from tests.inference import own
from tests.server.serving import ask, client, serving

SAID = "as in the data that it was trained on"


@pytest.fixture(scope="module")
def path(clip: ClipEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own.policy(clip, tmp_path_factory.mktemp("own") / "policy")


@pytest.fixture(scope="module")
def policy(path: Path) -> Policy:
    return Policy.load(path, "cpu")


def test_it_describes_itself(policy: Policy) -> None:
    told = policy.describe()
    assert json.loads(json.dumps(told)) == told, "plain JSON values"
    assert {name: each["shape"] for name, each in told["inputs"].items()} == {
        "agentview": ["H", "W", 3],
        "ee_pose": [3],
        "linear": [6],
        "val_0": [1],
    }
    assert told["inputs"]["ee_pose"] == {
        "shape": [3],
        "dtype": "float32",
        "unit": SAID,
        "frame": SAID,
        "sign": SAID,
        "key": "observation.tip",
    }
    assert told["inputs"]["agentview"]["key"] == "observation.images.front"
    actions = told["outputs"]["actions"]
    assert (actions["shape"], actions["key"], actions["unit"]) == ([4, 6], "action", SAID)
    assert actions["range"] == [list(each) for each in own.BOUNDS] and actions["names"] == list("012345")
    assert told["control_hz"] == 10 and told["own"]["keys"] == own.KEYS
    assert "LIBERO" not in json.dumps(told) and "quaternion" not in json.dumps(told)


def test_it_acts(policy: Policy) -> None:
    seen = own.observation()
    policy.reset(3)
    chunk = policy.act(seen, own.INSTRUCTION)
    low, high = np.array(own.BOUNDS, np.float32).T
    assert chunk.shape == (4, 6) and (chunk >= low).all() and (chunk <= high).all()
    assert np.abs(chunk).max() > 500, "in its own units"
    np.testing.assert_allclose(policy.sample(seen, own.INSTRUCTION, 2, seed=3)[0], chunk, rtol=1e-4, atol=1e-3)
    batch = {name: np.stack([x, own.observation(1)[name]]) for name, x in seen.items()}
    both = policy.infer(batch, own.INSTRUCTION, policy.noise([3, 4]))
    np.testing.assert_allclose(both[0], chunk, rtol=1e-4, atol=1e-3)
    turned = seen | {"ee_pose": -seen["ee_pose"]}
    policy.reset(3)
    assert not np.allclose(policy.act(turned, own.INSTRUCTION), chunk), "no sign is taken from it"
    with pytest.raises(DataError, match=rf"'ee_pose' has shape \(7,\), not \(3,\).*linear: float32 \(6\), {SAID}"):
        policy.act(seen | {"ee_pose": np.zeros(7)}, own.INSTRUCTION)
    with pytest.raises(DataError, match=r"noise has shape \(2, 4, 7\), not \(2, 4, 6\)"):
        policy.infer(batch, own.INSTRUCTION, np.zeros((2, 4, 7), np.float32))


@pytest.mark.parametrize("shift", [None, 0, 1])
def test_actions_follow_the_observations_that_it_learnt_them_for(shift: int | None, path: Path, tmp_path: Path) -> None:
    """Of a policy of `embed.obs_shift: 1` the action of the next row; bundles of before do not tell."""
    keys, (take, *_) = asdict(make.KEYS), make.TAKES
    told = {"keys": keys, "fps": 10.0, **({} if shift is None else {"obs_shift": shift})}
    arch = base.architecture(cameras=("front",), proprio=("joints",), widths=(6,), bounds=own.BOUNDS)
    spec = replace(load_spec(path), architecture=arch, data={"sim": None, "own": told})
    recording = demonstration(make.write_v3(tmp_path / "set"), None, spec)
    assert recording.actions is not None
    last = take.length - (shift or 0)
    np.testing.assert_array_equal(recording.actions[:last], take.arrays["action"][shift or 0 :])
    assert np.isnan(recording.actions[last:]).all() and len(recording) == take.length


def test_its_export_acts_as_it_does(path: Path, policy: Policy, clip: ClipEncoder, tmp_path: Path) -> None:
    tree = export(load(path), clip, [], tmp_path / "onnx")
    assert tree["checks"]["policy.onnx"]["share_clipped"] < 0.6, "of one component of six all are"
    exported = OnnxPolicy.load(tmp_path / "onnx")
    assert (exported.signals, exported.action_dim, exported.cameras) == (own.STATES, 6, (own.CAMERA,))
    told = exported.describe()
    assert told.pop("weights_sha256") and told.pop("steps") and told == policy.describe()
    low, high = np.array(own.BOUNDS, np.float32).T
    for seed in range(3):
        seen, noise = own.observation(seed), policy.noise([seed])
        policy.reset(seed)
        wanted = policy.act(seen, own.INSTRUCTION)
        difference = np.abs(exported.act(seen, own.INSTRUCTION, noise=noise[0]) - wanted)
        assert (difference <= 1e-4 * np.maximum(np.abs(low), np.abs(high))).all()
    assert exported.act(seen, own.INSTRUCTION).shape == (4, 6)
    with pytest.raises(DataError, match="another robot, which LIBERO's simulator cannot show"):
        OnnxAgent(tmp_path / "onnx")


def test_it_is_served_by_its_own_names(policy: Policy) -> None:
    seen = own.observation()
    with serving(policy) as (_, address):
        with client(address) as ws:
            noise = policy.noise([3])
            actions = ask(ws, {**seen, "prompt": own.INSTRUCTION, "noise": noise[0]})["actions"]
        with pytest.raises(DataError, match=rf"{address}: its policy was trained on data of another robot"):
            plan_remote(f"ws://{address}", tiny.SIM, None, 1.0)
    policy.reset(3)
    np.testing.assert_allclose(actions, policy.act(seen, own.INSTRUCTION), rtol=1e-4, atol=1e-3)
    inputs = Inputs.of(policy.describe())
    assert inputs.keys == {name: [name] for name in (own.CAMERA, *own.STATES)}
    theirs = {"observation/image": seen[own.CAMERA], "observation/state": np.zeros(8), "prompt": "go"}
    with pytest.raises(MessageError, match=r"missing: 'agentview', 'ee_pose', .*openpi's keys are LIBERO's, and this"):
        parse(theirs, inputs)


def test_its_card_says_what_is_so(path: Path, clip: ClipEncoder, tmp_path: Path) -> None:
    text = card(load_spec(path))
    for said in (
        "A vision-language-action policy for the robot whose data it was trained on",
        '"agentview": ..., "ee_pose": ..., "linear": ..., "val_0": ...',
        "# (4, 6): carry out",
        f"| `ee_pose` | (3) | float32 | {SAID} | {SAID} | {SAID} | observation.tip |",
        "0 (from -90 to 90), 1 (from -1000 to -990), ",
        "10 times a second",
        "Demonstrations: 9 (900 steps), 1 more for validation: of another robot than LIBERO's",
        "no success rate is known",
    ):
        assert said in text
    assert "[-1, 1]" not in text and "simulation" not in text and "Panda" not in text
    tags = yaml.safe_load(text.split("---\n")[1])["tags"]
    assert "libero" not in tags and "robotics" in tags
    assert "one for each step of the data" in card(load_spec(own.policy(clip, tmp_path / "policy", fps=None)))
