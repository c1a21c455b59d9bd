"""Rotations against scipy and robosuite."""

import numpy as np
import pytest
from robosuite.utils.transform_utils import quat2axisangle
from scipy.spatial.transform import Rotation

from pipeline.libero.proprio import axis_angle_from_quat, ee_pose_from_axis_angle, ee_pose_from_quat

RNG = np.random.default_rng(0)
QUATS = RNG.normal(size=(200, 4))
QUATS /= np.linalg.norm(QUATS, axis=1, keepdims=True)
POS = RNG.normal(size=(200, 3))


def test_axis_angle_is_robosuites() -> None:
    special = np.array([[0, 0, 0, 1], [0, 0, 0, -1], [1, 0, 0, 0], [-1, 0, 0, 0], [1e-9, 0, 0, 1], [0.6, 0, 0, 0.8]])
    for quat in [*QUATS, *special]:
        np.testing.assert_allclose(axis_angle_from_quat(quat), quat2axisangle(quat.copy()), rtol=1e-12, atol=1e-12)
    assert axis_angle_from_quat(QUATS.reshape(2, 100, 4)).shape == (2, 100, 3)


def test_both_ways_give_the_same_pose() -> None:
    by_quat = ee_pose_from_quat(POS, QUATS)
    by_axis_angle = ee_pose_from_axis_angle(POS, axis_angle_from_quat(QUATS))
    np.testing.assert_allclose(by_axis_angle, by_quat, atol=1e-6)
    np.testing.assert_array_equal(by_quat[:, :3], POS.astype(np.float32))
    ours = Rotation.from_quat(by_quat[:, 3:])
    assert (ours * Rotation.from_quat(QUATS).inv()).magnitude().max() < 1e-6
    rotvec = RNG.normal(size=(50, 3))
    np.testing.assert_allclose(
        Rotation.from_quat(ee_pose_from_axis_angle(POS[:50], rotvec)[:, 3:]).as_matrix(),
        Rotation.from_rotvec(rotvec).as_matrix(),
        atol=1e-6,
    )


def test_sign_and_norm() -> None:
    poses = ee_pose_from_quat(POS, 3 * QUATS)
    np.testing.assert_array_equal(poses, ee_pose_from_quat(POS, -3 * QUATS))
    assert (poses[:, 3] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(poses[:, 3:], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(ee_pose_from_axis_angle(np.zeros(3), np.zeros(3)), [0, 0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("axis", [(1, 0, 0), (0.99, 0.1, -0.1)])
def test_no_jump_where_the_gripper_points_down(axis: tuple[float, float, float]) -> None:
    """Through half a turn about x, where LIBERO's demonstrations are and where q_w >= 0 would flip the sign."""
    angles = np.linspace(np.pi - 0.7, np.pi + 0.7, 400)
    axis_angle = angles[:, None] * (np.array(axis) / np.linalg.norm(axis))
    quats = ee_pose_from_axis_angle(np.zeros((400, 3)), axis_angle)[:, 3:]
    assert np.abs(np.diff(quats, axis=0)).max() < 0.01
    assert (quats[:, 3] > 0).any()
    assert (quats[:, 3] < 0).any()
