"""What LIBERO's frames and actions are. Demonstrations and rollout both go through here."""

import numpy as np
from jaxtyping import Shaped

ACTION_NAMES = ("dx", "dy", "dz", "dax", "day", "daz", "gripper")
"""Components of an action, each in [-1, 1]: a step of the hand, an axis-angle rotation of it, the gripper."""
ACTION_DIM = len(ACTION_NAMES)
CONTROL_HZ = 20


def upright(frames: Shaped[np.ndarray, "*batch H W C"]) -> Shaped[np.ndarray, "*batch H W C"]:
    """Flip frames vertically: LIBERO's (OpenGL's) upside-down rows to upright ones, and back.

    LIBERO's HDF5 files and its environment both give the picture upside-down. A flip is the true view; the half turn
    that OpenVLA, openpi and LeRobot apply is the mirror image of it.

    Returns:
        A contiguous copy, so that torch can share its memory.
    """
    return np.ascontiguousarray(frames[..., ::-1, :, :])
