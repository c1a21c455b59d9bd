"""openpi's observation is ours in other words: there and back, against the definitions of both."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.inference.openpi import JOINTS, STATE, mirrored, padded, to_openpi
from pipeline.libero.conventions import upright
from pipeline.server.request import Inputs, parse

INPUTS = Inputs(
    {"agentview": (3, "uint8"), "eye_in_hand": (3, "uint8")}, {"joint_pos": 7, "ee_pose": 7, "gripper": 2}, 1, (4, 7)
)


def test_half_a_turn_is_a_flip_and_a_mirror() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)  # as LIBERO gives it
    np.testing.assert_array_equal(mirrored(upright(raw)), raw[::-1, ::-1])
    np.testing.assert_array_equal(mirrored(np.stack([raw, raw]))[1], raw[:, ::-1])


@pytest.mark.parametrize("seed", range(5))
def test_an_observation_comes_back_from_openpis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_euler("xyz", [np.pi + rng.uniform(-0.5, 0.5), *rng.uniform(-0.5, 0.5, 2)])
    quat = rotation.as_quat()
    quat *= np.sign(quat[0])
    state = {"ee_pose": np.array([0.1, 0.2, 0.9, *quat], np.float32), "gripper": np.array([0.03, -0.02], np.float32)}
    state["joint_pos"] = rng.normal(size=7).astype(np.float32)
    images = {name: rng.integers(0, 256, (224, 224, 3), np.uint8) for name in INPUTS.images}
    request = to_openpi(images, state, "do it")
    assert request["prompt"] == "do it" and request[STATE].dtype == np.float64
    angles = request[STATE][3:6]
    assert abs((Rotation.from_rotvec(angles) * rotation.inv()).magnitude()) < 1e-6
    assert angles[0] > 2, "near half a turn about x, as robosuite's quat2axisangle gives it"
    back = parse(request, INPUTS).observation
    for name, value in (images | state).items():
        np.testing.assert_allclose(back[name], value, atol=1e-6)


def test_joints_are_sent_where_they_are_given() -> None:
    state = {"ee_pose": np.array([0, 0, 0, 1, 0, 0, 0], np.float32), "gripper": np.zeros(2, np.float32)}
    assert JOINTS not in to_openpi({}, state, "x")
    assert to_openpi({}, state | {"joint_pos": np.arange(7)}, "x")[JOINTS].tolist() == list(range(7))


def test_a_picture_that_is_not_square_gets_black_bars() -> None:
    image = np.full((100, 200, 3), 200, np.uint8)
    square = padded(image)
    assert square.shape == (224, 224, 3)
    assert (square[56:168] == 200).all() and not square[:56].any() and not square[168:].any()
    assert padded(square) is square
