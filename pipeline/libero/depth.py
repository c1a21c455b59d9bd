"""Depth as one more camera: `<camera>_depth` sees through the same lens, and CLIP is shown it as a grey picture."""

import numpy as np
from jaxtyping import Float, UInt8, UInt16

NEAR, FAR = 0.05, 2.0  # metres: the finger tips are 0.1 m from the hand's camera, the table within 2 m of the other
DEPTH_ID = "grey-log-0.05-2/v1"
"""Name of what `depth_picture` does; written into stores and policies that have depth, to be changed with it."""
SUFFIX = "_depth"


def rgb_camera(camera: str) -> str:
    """Return the camera through which `camera` looks: itself, or that whose depth it is."""
    return camera.removesuffix(SUFFIX)


def is_depth(camera: str) -> bool:
    """Return whether what this camera gives is depth."""
    return camera.endswith(SUFFIX)


def to_millimetres(metres: Float[np.ndarray, "*batch H W"]) -> UInt16[np.ndarray, "*batch H W 1"]:
    """Return depths as depth cameras and data sets keep them. What is beyond 65.5 m is there."""
    return np.clip(np.rint(1000 * metres), 0, 2**16 - 1).astype(np.uint16)[..., None]


def depth_picture(millimetres: UInt16[np.ndarray, "*batch H W 1"]) -> UInt8[np.ndarray, "*batch H W 3"]:
    """Return a grey picture, white at NEAR and black from FAR on or where nothing was measured (0).

    Logarithmic: a step of grey is 1.5 % of the distance, 1 mm at the finger tips and 15 mm at a metre.
    """
    metres = np.where(millimetres == 0, FAR, millimetres / 1000)
    grey = 255 * np.log(np.clip(metres, NEAR, FAR) / FAR) / np.log(NEAR / FAR)
    return np.repeat(np.rint(grey).astype(np.uint8), 3, axis=-1)
