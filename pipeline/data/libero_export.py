"""LIBERO's demonstrations with the keys and the conventions that LeRobot's LIBERO has, for its policies to train on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.export import Recording, export
from pipeline.errors import DataError
from pipeline.libero.conventions import ACTION_NAMES, CONTROL_HZ
from pipeline.libero.demos.read import Demo, read, read_hand

IMAGES = {"agentview": "observation.images.image", "eye_in_hand": "observation.images.image2"}
STATE, ACTION = "observation.state", "action"
STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")


def export_libero(demos: Sequence[Demo], obs_shift: int, action: str, out: Path) -> tuple[int, int]:
    """Write demonstrations as a LeRobotDataset; return how many episodes and frames it has.

    Args:
        obs_shift: as `embed.obs_shift`: LeRobot's observations precede the action of their row.
        action: as `train_flow.action`: what was executed, or the scripted expert's, free of noise.
        out: directory, not there yet.

    Raises:
        DataError: as `export`, or a demonstration cannot be read, or has no such actions.
    """
    if lacking := next((demo for demo in demos if action != ACTION and action not in demo.optional), None):
        raise DataError(f"{lacking}: has no {action}: add --set train_flow.action=action")
    names = {STATE: STATE_NAMES, ACTION: ACTION_NAMES}
    return export(out, _recordings(demos, obs_shift, action), CONTROL_HZ, "panda", names)


def _recordings(demos: Sequence[Demo], obs_shift: int, action: str) -> Iterator[Recording]:
    for demo in demos:
        rows, seen = read(demo, tuple(IMAGES)), slice(demo.length - obs_shift)
        # LeRobot turns LIBERO's upside-down frames by half a turn: the mirror image of what is upright here.
        frames = {key: rows["images"][camera][seen, :, ::-1] for camera, key in IMAGES.items()}
        signals = {STATE: read_hand(demo)[seen].astype(np.float32), ACTION: rows[action][obs_shift:]}
        yield Recording(demo.task.language, frames, signals)
