"""What a client sent is what the policy is given, or the client is told why not, by the keys that it used."""

import numpy as np
import pytest

from pipeline.inference.codec import MessageError, pack
from pipeline.server.request import Inputs, parse
from tests.server.serving import HORIZON, Known, request

INPUTS = Inputs.of(Known(("joint_pos", "ee_pose", "gripper")).describe())
WITHOUT_JOINTS = Inputs.of(Known().describe())
HISTORY = Inputs.of(Known(n_obs_steps=3).describe())


def ours(**changes: object) -> dict:
    """The same observation under our own names."""
    rng = np.random.default_rng(0)
    made = {
        "agentview": rng.integers(0, 256, (20, 30, 3), np.uint8),
        "eye_in_hand": rng.integers(0, 256, (20, 30, 3), np.uint8),
        "joint_pos": rng.normal(size=7),
        "ee_pose": np.array([0.1, 0.2, 0.3, -0.6, 0.8, 0, 0]),
        "gripper": np.array([1, 2]),
        "prompt": "go",
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_our_own_keys_are_taken_as_they_are() -> None:
    given = ours()
    found = parse(given, INPUTS)
    np.testing.assert_array_equal(found.observation["agentview"], given["agentview"])
    np.testing.assert_array_equal(found.observation["joint_pos"], given["joint_pos"].astype(np.float32))
    assert found.instruction == "go"
    assert parse({**given, **request()}, INPUTS).observation["ee_pose"][4] == np.float32(0.8), "our names come first"


def test_joints_are_asked_for_by_name() -> None:
    with pytest.raises(MessageError, match=r"missing: 'joint_pos' or 'observation/joint_position'\. Wanted: agentview"):
        parse(request(), INPUTS)
    given = {**request(), "observation/joint_position": np.arange(7.0)}
    assert parse(given, INPUTS).observation["joint_pos"].tolist() == list(range(7))


def test_noise_is_the_observations_own() -> None:
    given = request(0)
    turned = dict(reversed(given.items()))
    first, again, other = (parse(tree, WITHOUT_JOINTS).noise for tree in (given, turned, {**given, "prompt": "x"}))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (HORIZON, 7) and first.dtype == np.float32 and (first != other).all()
    mine = np.ones((HORIZON, 7))
    np.testing.assert_array_equal(parse({**given, "noise": mine}, WITHOUT_JOINTS).noise, mine)


def test_a_history_is_a_leading_axis() -> None:
    single = parse(request(), HISTORY).observation
    assert single["agentview"].shape == (1, 224, 224, 3) and single["gripper"].shape == (1, 2)
    given = {name: x if isinstance(x, str) else np.stack([x] * 3) for name, x in request().items()}
    given["observation/state"] = np.arange(24.0).reshape(3, 8)
    found = parse(given, HISTORY).observation
    assert found["agentview"].shape == (3, 224, 224, 3)
    assert found["gripper"].tolist() == [[6, 7], [14, 15], [22, 23]]
    with pytest.raises(MessageError, match="a history of 3 observations; this policy looks at 1"):
        parse(given, WITHOUT_JOINTS)
    given["observation/state"] = np.zeros((2, 8))
    with pytest.raises(MessageError, match="histories of different lengths"):
        parse(given, HISTORY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"observation_state": np.full(8, np.nan)}, "'observation/state' holds nan in component 0"),
        ({"observation_state": np.array([0, 0, np.inf, 0, 0, 0, 0, 0])}, "holds inf in component 2"),
        ({"observation_state": np.full(8, 1e300)}, "holds 1e[+]300 in component 0; every number must be finite"),
        ({"observation_state": np.zeros(7)}, r"'observation/state' is float64 \(7,\); wanted is .* \(8,\)"),
        ({"observation_state": np.zeros(8, bool)}, r"is bool \(8,\)"),
        ({"observation_state": np.array(["x"] * 8)}, "is <U1"),
        ({"observation_state": [0.0] * 8}, "is list"),
        ({"observation_state": None}, "missing: 'ee_pose' or 'observation/state', 'gripper' or 'observation/state'"),
        ({"observation_image": np.zeros((224, 224, 3))}, r"is float64 \(224, 224, 3\); an image is .* uint8"),
        ({"observation_image": np.zeros((3, 224, 224), np.uint8)}, r"is uint8 \(3, 224, 224\)"),
        ({"observation_image": np.zeros((0, 224, 3), np.uint8)}, "sides have 1 to 4096 pixels"),
        ({"observation_image": np.zeros((1, 5000, 3), np.uint8)}, "sides have 1 to 4096 pixels"),
        ({"observation_image": b"png"}, "is bytes"),
        ({"prompt": None}, "'prompt' is NoneType None"),
        ({"prompt": " "}, "'prompt' is str ' '"),
        ({"prompt": "x" * 1001}, r"'prompt' is str .*\.\.\., not the instruction"),
        ({"prompt": b"bytes"}, "'prompt' is bytes"),
        ({"noise": np.zeros((2, 7))}, r"'noise' is float64 \(2, 7\); wanted is float \(6, 7\)"),
        ({"noise": np.full((HORIZON, 7), np.nan)}, "no standard normal distribution gives"),
    ],
)
def test_what_cannot_be_acted_on_is_told(changes: dict, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        parse(request(**changes), WITHOUT_JOINTS)


@pytest.mark.parametrize("tree", [None, 5, "text", [1, 2], np.zeros(3), pack({})])
def test_a_message_is_a_dict(tree: object) -> None:
    with pytest.raises(MessageError, match=r"not a dict of an observation\. Wanted: agentview uint8"):
        parse(tree, WITHOUT_JOINTS)
