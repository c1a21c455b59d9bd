"""openpi's LIBERO observation, and ours: the same moment in other words.

openpi (examples/libero/main.py)        here
observation/image, .../wrist_image      agentview, eye_in_hand: uint8 (H, W, 3), upright
  rotated by 180 degrees, 224 px          (LIBERO's own pictures are upside-down)
observation/state (8,)                  ee_pose (7,): position, quaternion xyzw with q_x >= 0
  position (m), axis * angle (rad),     gripper (2,)
  fingers (m)
observation/joint_position, not sent    joint_pos (7,), rad
  by its LIBERO example
prompt                                  instruction

Half a turn and a vertical flip differ by a mirror: left and right are exchanged, too. Arrays may have leading axes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from pipeline.libero.proprio import axis_angle_from_quat, ee_pose_from_axis_angle

IMAGES = {"agentview": "observation/image", "eye_in_hand": "observation/wrist_image"}
STATE = "observation/state"
JOINTS = "observation/joint_position"  # as in openpi's DROID example
PROMPT = "prompt"
STATE_DIM = 8
IMAGE_SIZE = 224
DEFAULT_ACTION_STEPS = 5  # replan_steps in openpi's example


def mirrored(image: np.ndarray) -> np.ndarray:
    """Exchange left and right of a picture (..., H, W, 3): from upright to rotated LIBERO pictures, and back."""
    turned = np.empty_like(image, order="C")
    for channel in range(image.shape[-1]):  # a fifth of the time of a copy of image[..., ::-1, :]
        turned[..., channel] = image[..., ::-1, channel]
    return turned


SOURCES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    **{ours: (theirs, mirrored) for ours, theirs in IMAGES.items()},
    "ee_pose": (STATE, lambda state: ee_pose_from_axis_angle(state[..., :3], state[..., 3:6])),
    "gripper": (STATE, lambda state: state[..., 6:]),
    "joint_pos": (JOINTS, lambda joints: joints),
}
"""Our input: openpi's key that it comes from, and how."""


def to_openpi(images: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], instruction: str) -> dict[str, Any]:
    """Return the request of openpi's LIBERO example.

    Args:
        images: upright, uint8 (H, W, 3); of cameras that openpi's example has.
        state: ee_pose and gripper, and joint_pos if it is to be sent.
    """
    pose = np.asarray(state["ee_pose"], np.float64)
    parts = (pose[:3], axis_angle_from_quat(pose[3:]), np.asarray(state["gripper"], np.float64))
    request: dict[str, Any] = {IMAGES[name]: padded(mirrored(image)) for name, image in images.items()}
    request |= {STATE: np.concatenate(parts), PROMPT: instruction}
    if "joint_pos" in state:
        request[JOINTS] = np.asarray(state["joint_pos"], np.float64)
    return request


def padded(image: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Return a uint8 picture (H, W, 3) resized to (size, size, 3), bilinear, with black bars where it is not square."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = max(height, width) / size
    inner = Image.fromarray(image).resize((int(width / ratio), int(height / ratio)), Image.Resampling.BILINEAR)
    whole = Image.new("RGB", (size, size))
    whole.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return np.asarray(whole)
