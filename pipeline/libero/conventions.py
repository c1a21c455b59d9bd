"""Which way up a frame is. Demonstrations and rollout both go through here."""

import numpy as np
from jaxtyping import UInt


def upright(frames: UInt[np.ndarray, "*batch H W C"]) -> UInt[np.ndarray, "*batch H W C"]:
    """Flip frames vertically: LIBERO's (OpenGL's) upside-down rows to upright ones, and back.

    LIBERO's HDF5 files and its environment both give the picture upside-down. A flip is the true view; the half turn
    that OpenVLA, openpi and LeRobot apply is the mirror image of it.

    Returns:
        A contiguous copy, so that torch can share its memory.
    """
    return np.ascontiguousarray(frames[..., ::-1, :, :])
