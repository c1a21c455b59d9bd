"""Demonstrations in LIBERO's HDF5 layout: find and check them (`scan`), read rows (`read`).

Files are `<root>/<suite>/<task name>_demo.hdf5`, as LIBERO's scripts/create_dataset.py writes them. Two habits of
theirs are undone here and nowhere else: images lie upside-down in the file and come out upright; demos come back from
HDF5 as demo_0, demo_1, demo_10... and come out in numeric order. Time is left alone: `obs[t]` was recorded *after*
`action[t]`, so whoever pairs them must shift (`embed.obs_shift`).

No handle outlives a call: h5py handles must not cross processes.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError
from pipeline.libero.conventions import upright
from pipeline.libero.demos.defects import demo_defect, file_defect, not_a_file, not_hdf5, obs_shift, whole_number
from pipeline.libero.demos.layout import IMAGE_KEYS, OPTIONAL, demo_file, image_key
from pipeline.libero.depth import depth_picture, is_depth
from pipeline.libero.proprio import ee_pose_from_axis_angle
from pipeline.libero.suites import Task

log = logging.getLogger(__name__)

UNREADABLE = (OSError, KeyError, RuntimeError, ValueError)
"""What h5py raises for a damaged file: which of them depends on what is damaged."""
REMEDY = (
    "Make them: python -m stages.demos. demos.source says where from: 'official' downloads LIBERO's own, 'path' takes "
    "those in demos.path, 'scripted' records them in the simulator (the suites that the expert can solve)"
)


@dataclass(frozen=True)
class Demo:
    """One usable demonstration.

    Attributes:
        task: whose instruction (`task.language`) it follows.
        file: the HDF5 file.
        name: its group below /data, such as "demo_3".
        length: number of actions T.
        optional: which of OPTIONAL the file holds.
        frame_size: S, pixels along a side of the square frames; 0 if no camera was asked for.
        obs_shift: the `embed.obs_shift` that it needs; None if that cannot be measured, see `defects.obs_shift`.
    """

    task: Task
    file: Path
    name: str
    length: int
    optional: tuple[str, ...]
    frame_size: int
    obs_shift: int | None = None

    def __str__(self) -> str:
        return f"{_named(self.file)} {self.name}"

    @property
    def number(self) -> int:
        """Of its group."""
        return _number(self.name)

    @property
    def source(self) -> str:
        """What a store calls it: file/demo."""
        return f"{self.file.name}/{self.name}"


@dataclass(frozen=True)
class Quarantined:
    """A file, or one demo of it, that is left out, and why. `demo` is None when the whole file is."""

    file: Path
    demo: str | None
    reason: str

    def __str__(self) -> str:
        return f"{_named(self.file)}{f' {self.demo}' if self.demo else ''}: {self.reason}"


def scan(
    root: Path, suite: str, tasks: Sequence[Task], cameras: Sequence[str] = tuple(IMAGE_KEYS)
) -> tuple[list[Demo], list[Quarantined]]:
    """Check the demonstrations of these tasks; return the usable ones in order of task and number, and the others.

    Everything is read, but of the pixels a few frames only. Damage of a file or demo is reported in the second list,
    never raised.

    Args:
        root: directory that holds `<suite>/`.
        cameras: that must be present.

    Raises:
        DataError: a task's file is missing, or a camera is unknown.
    """
    for camera in cameras:
        image_key(camera)
    demos: list[Demo] = []
    quarantine: list[Quarantined] = []
    for task in tasks:
        path = demo_file(root, task)
        if problem := not_a_file(path):
            raise DataError(f"{path} {problem}: no demonstrations of {suite} task {task.id}. {REMEDY}")
        found, damaged = _scan_file(path, task, cameras)
        demos += found
        quarantine += damaged
    for entry in quarantine:
        log.warning("quarantined %s", entry)
    return demos, quarantine


def read(demo: Demo, cameras: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Read rows `start:stop` of one demonstration.

    Returns:
        images: camera -> (n, H, W, 3) uint8, upright, depth as a grey picture. joint_pos (n, 7), ee_pose (n, 7: metres,
        quaternion xyzw with q_x >= 0), gripper (n, 2: metres): recorded after the action of the same row. action (n, 7)
        in [-1, 1]. Of `demo.optional`: expert_action (n, 7), ee_wrench (n, 6: N, N m). All but the images float32.

    Raises:
        DataError: the file cannot be read (any more).
    """
    rows = slice(start, stop)
    try:
        with h5py.File(demo.file, "r") as file:
            group = file["data"][demo.name]
            obs = group["obs"]
            ee_states = obs["ee_states"][rows]
            out = {
                "images": {camera: _pictures(obs, camera, rows) for camera in cameras},
                "joint_pos": obs["joint_states"][rows].astype(np.float32),
                "ee_pose": ee_pose_from_axis_angle(ee_states[:, :3], ee_states[:, 3:]),
                "gripper": obs["gripper_states"][rows].astype(np.float32),
                "action": group["actions"][rows].astype(np.float32),
            }
            return out | {name: group[OPTIONAL[name]][rows].astype(np.float32) for name in demo.optional}
    except UNREADABLE as error:
        raise DataError(f"{demo}: cannot be read: {error}. Make or download it again.") from error


def read_hand(demo: Demo) -> np.ndarray:
    """Return the state that LeRobot and openpi give: (T, 8) float64, as the file has it.

    Position of the end effector (3: m), rotation as axis times angle (3: rad), the two fingers (2: m).

    Raises:
        DataError: the file cannot be read (any more).
    """
    try:
        with h5py.File(demo.file, "r") as file:
            obs = file["data"][demo.name]["obs"]
            return np.concatenate([obs["ee_states"][()], obs["gripper_states"][()]], axis=1).astype(np.float64)
    except UNREADABLE as error:
        raise DataError(f"{demo}: cannot be read: {error}. Make or download it again.") from error


@dataclass(frozen=True)
class Motion:
    """What it takes to do a demonstration again.

    Attributes:
        initial_state: (D,) float64 flattened simulator state (time, qpos, qvel) before the first action.
        actions: (T, 7) float64, as executed.
        model_xml: the scene, with its fixtures where they stood.
    """

    initial_state: np.ndarray
    actions: np.ndarray
    model_xml: str


def read_motion(demo: Demo) -> Motion:
    """Read what a replay needs.

    Raises:
        DataError: the file cannot be read, or keeps no states or no model.
    """
    try:
        with h5py.File(demo.file, "r") as file:
            group = file["data"][demo.name]
            return Motion(group["states"][0], group["actions"][()], str(group.attrs["model_file"]))
    except UNREADABLE as error:
        raise DataError(f"{demo}: cannot be replayed: {error}. Make or download it again.") from error


def digest(demo: Demo) -> str:
    """Return the SHA-256 of all data sets of one demo (name, type, shape, bytes), in the order of their names.

    Neither path nor time stamps count: a copy or a DVC checkout of the same data has the same digest.

    Raises:
        DataError: the file cannot be read (any more).
    """
    total = hashlib.sha256()
    try:
        with h5py.File(demo.file, "r") as file:
            for name, dataset in datasets(file["data"][demo.name]):
                total.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode())
                total.update(np.ascontiguousarray(dataset[()]).data)
    except UNREADABLE as error:
        raise DataError(f"{demo}: cannot be read: {error}. Make or download it again.") from error
    return total.hexdigest()


def recorded_with(file: Path) -> dict[str, Any] | None:
    """Return the simulator settings (section `sim`) a scripted file was recorded with; None for any other file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with h5py.File(file, "r") as opened:
            text = opened["data"].attrs.get("sim")
        return json.loads(text) if text is not None else None
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read: {error}. Make or download it again.") from error


def datasets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path below a group, and the data set, of all that lie there."""
    for key in sorted(group):
        if isinstance(group[key], h5py.Group):
            yield from datasets(group[key], f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", group[key]


def _pictures(obs: Any, camera: str, rows: slice) -> np.ndarray:
    frames = upright(obs[image_key(camera)][rows])
    return depth_picture(frames) if is_depth(camera) else frames


def _scan_file(path: Path, task: Task, cameras: Sequence[str]) -> tuple[list[Demo], list[Quarantined]]:
    try:
        if foreign := not_hdf5(path):
            return [], [Quarantined(path, None, foreign)]
        with h5py.File(path, "r") as file:
            if "data" not in file:
                return [], [Quarantined(path, None, "has no group /data: not a LIBERO demonstration file")]
            if wrong := file_defect(file["data"]):
                return [], [Quarantined(path, None, wrong)]
            return _scan_group(file["data"], path, task, cameras)
    except UNREADABLE as error:
        return [], [Quarantined(path, None, f"cannot be opened ({_first_line(error)}): truncated or damaged")]


def _scan_group(data: Any, path: Path, task: Task, cameras: Sequence[str]) -> tuple[list[Demo], list[Quarantined]]:
    names = sorted((n for n in data if n[:5] == "demo_" and n[5:].isdigit()), key=_number)
    demos: list[Demo] = []
    damaged: list[Quarantined] = []
    for name in names:
        made = _demo(data, name, path, task, cameras)
        demos += [made] if isinstance(made, Demo) else []
        damaged += [made] if isinstance(made, Quarantined) else []
    if len(names) == len(damaged) > 1 and len(reasons := {entry.reason for entry in damaged}) == 1:
        damaged = [Quarantined(path, None, f"each of its {len(names)} demonstrations {reasons.pop()}")]
    if not names:
        damaged.append(Quarantined(path, None, "holds no demonstrations"))
    promised, wrong = whole_number(data.attrs, "num_demos", len(names))
    if wrong:
        log.warning("%s: %s; %d demonstrations are there", path, wrong, len(names))
    for name in sorted({f"demo_{i}" for i in range(promised)} - set(names), key=_number):
        damaged.append(Quarantined(path, name, f"is missing, though num_demos is {promised}"))
    return demos, damaged


def _demo(data: Any, name: str, path: Path, task: Task, cameras: Sequence[str]) -> Demo | Quarantined:
    try:
        group = data[name]
        if defect := demo_defect(group, cameras):
            return Quarantined(path, name, defect)
        size = group["obs"][image_key(cameras[0])].shape[1] if cameras else 0
        optional = tuple(ours for ours, theirs in OPTIONAL.items() if theirs in group)
        return Demo(task, path, name, len(group["actions"]), optional, size, obs_shift(group))
    except (*UNREADABLE, TypeError, AttributeError) as error:
        return Quarantined(path, name, f"cannot be read: {_first_line(error)}")


def _number(name: str) -> int:
    return int(name.removeprefix("demo_"))


def _named(path: Path) -> Path:
    """Return the file behind a link that this project made: the name that its owner knows."""
    target = path.readlink() if path.is_symlink() else path
    return target if target.name == path.name else path


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
