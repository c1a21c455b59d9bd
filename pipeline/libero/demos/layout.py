"""What a demonstration file in LIBERO's layout holds. docs/demonstrations.md has it as one table, for people."""

from pathlib import Path

from pipeline.errors import DataError, did_you_mean
from pipeline.libero.depth import SUFFIX
from pipeline.libero.settings import Demos
from pipeline.libero.suites import Task

INDEX = "index.json"
"""In the directory of a suite: what is there, and what is left out."""
GUIDE = "The layout is described in docs/demonstrations.md"
IMAGE_KEYS = {"agentview": "agentview_rgb", "eye_in_hand": "eye_in_hand_rgb"}
"""Camera -> data set below `obs/`."""
DEPTH_KEYS = {f"{camera}{SUFFIX}": f"{camera}{SUFFIX}_mm" for camera in IMAGE_KEYS}
"""Depth camera -> data set: uint16 millimetres. LIBERO's own scripts keep OpenGL's buffer as `<camera>_depth`."""
LOWDIM_WIDTHS = {"obs/joint_states": 7, "obs/ee_states": 6, "obs/gripper_states": 2, "actions": 7}
"""What every demo must hold beside its images: data set -> columns."""
OPTIONAL = {"expert_action": "expert_actions", "ee_wrench": "obs/ee_wrench"}
"""What `read` gives of the demos that have it -> data set."""
OPTIONAL_WIDTHS = {
    **{"expert_actions": 7, "obs/ee_wrench": 6},
    **{"robot_states": 9, "states": None, "rewards": 0, "dones": 0},
}
"""What is checked when it is there. None: any number of columns; 0: no columns (a vector)."""
UPSIDE_DOWN = "opengl"
"""The attribute `macros_image_convention` of LIBERO's files: rows of pixels from the bottom up."""


def cameras_of(demos: Demos) -> tuple[str, ...]:
    """Return the cameras that demonstrations by these settings have."""
    return (*IMAGE_KEYS, *(DEPTH_KEYS if demos.depth else ()))


def demo_file(root: Path, task: Task) -> Path:
    """Return where the demonstrations of `task` lie below `root`."""
    return root / task.suite / f"{task.name}_demo.hdf5"


def image_key(camera: str) -> str:
    """Return the data set below `obs/` that holds what a camera saw.

    Raises:
        DataError: no such camera.
    """
    keys = IMAGE_KEYS | DEPTH_KEYS
    if camera not in keys:
        raise DataError(f"no camera {camera!r} in LIBERO's demonstrations.{did_you_mean(camera, keys)}")
    return keys[camera]
