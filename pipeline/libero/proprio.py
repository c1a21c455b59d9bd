"""The one place where rotations are converted. End-effector pose = position (3) + quaternion (4, xyzw).

A quaternion and its negative are the same rotation, so a network must always get the same one of the two. LIBERO's
gripper points down: the rotation is near half a turn about x, |q_x| is near 1 and q_w near 0. Hence q_x >= 0 is the
hemisphere whose border the data stay furthest from; the customary q_w >= 0 would flip signs in the middle of them
(a normalisation of that kind cost OpenVLA-OFT 14 points on LIBERO-Goal).
"""

import numpy as np
from jaxtyping import Float, Float32


def ee_pose_from_quat(
    pos: Float[np.ndarray, "*batch 3"], quat_xyzw: Float[np.ndarray, "*batch 4"]
) -> Float32[np.ndarray, "*batch 7"]:
    """Return position and quaternion (xyzw, unit norm, q_x >= 0) as one float32 vector.

    Args:
        pos: metres.
        quat_xyzw: any sign, any norm but zero.
    """
    quat = np.asarray(quat_xyzw, np.float64)
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    quat = np.where(quat[..., :1] < 0, -quat, quat)
    return np.concatenate([np.asarray(pos, np.float64), quat], axis=-1).astype(np.float32)


def ee_pose_from_axis_angle(
    pos: Float[np.ndarray, "*batch 3"], axis_angle: Float[np.ndarray, "*batch 3"]
) -> Float32[np.ndarray, "*batch 7"]:
    """Return `ee_pose_from_quat` for a rotation given as axis * angle, as LIBERO's HDF5 files hold it (`ee_ori`).

    Args:
        pos: metres.
        axis_angle: radians; the angle may be anywhere in [0, 2 pi].
    """
    half = np.asarray(axis_angle, np.float64) / 2
    half_angle = np.linalg.norm(half, axis=-1, keepdims=True)
    # np.sinc(x) = sin(pi x) / (pi x): no division by zero for the identity.
    quat = np.concatenate([half * np.sinc(half_angle / np.pi), np.cos(half_angle)], axis=-1)
    return ee_pose_from_quat(pos, quat)


def axis_angle_from_quat(quat_xyzw: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3"]:
    """Return axis * angle in radians, angle in [0, 2 pi], as robosuite's `quat2axisangle`: the sign is left alone.

    LIBERO's files were written with that function, and files written here must read the same.
    """
    quat = np.asarray(quat_xyzw, np.float64)
    w = np.clip(quat[..., 3:], -1, 1)
    sine = np.sqrt(1 - w * w)
    scale = np.where(sine > 0, 2 * np.arccos(w) / np.where(sine > 0, sine, 1), 0.0)
    return quat[..., :3] * scale
