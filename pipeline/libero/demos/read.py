"""Demonstrations in LIBERO's HDF5 layout: find and check them (`scan`), name them (`manifest`), read rows (`read`).

Files are `<root>/<suite>/<task name>_demo.hdf5`, as LIBERO's scripts/create_dataset.py writes them. Two habits of
theirs are undone here and nowhere else: images lie upside-down in the file and come out upright; demos come back from
HDF5 as demo_0, demo_1, demo_10... and come out in numeric order. Time is left alone: `obs[t]` was recorded *after*
`action[t]`, so whoever pairs them must shift (`embed.obs_shift`).

No handle outlives a call: h5py handles must not cross processes.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError, did_you_mean
from pipeline.libero.conventions import upright
from pipeline.libero.depth import SUFFIX, depth_picture, is_depth
from pipeline.libero.proprio import ee_pose_from_axis_angle
from pipeline.libero.settings import Demos
from pipeline.libero.suites import Task

log = logging.getLogger(__name__)

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
NO_OP_NORM = 1e-4
"""A step is a no-op if the first six action values have a smaller norm and the gripper command stays (OpenVLA)."""
UNREADABLE = (OSError, KeyError, RuntimeError, ValueError)
"""What h5py raises for a damaged file: which of them depends on what is damaged."""
REMEDY = (
    "Set demos.source to 'scripted' (records them in the simulator), 'official' (downloads LIBERO's own) or 'path' "
    "(files you have; name their directory in demos.path), then run: python -m stages.demos"
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
    """

    task: Task
    file: Path
    name: str
    length: int
    optional: tuple[str, ...]
    frame_size: int

    def __str__(self) -> str:
        return f"{self.file} {self.name}"

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
        return f"{self.file}{f' {self.demo}' if self.demo else ''}: {self.reason}"


def cameras_of(demos: Demos) -> tuple[str, ...]:
    """Return the cameras that demonstrations by these settings have."""
    return (*IMAGE_KEYS, *(DEPTH_KEYS if demos.depth else ()))


def demo_file(root: Path, task: Task) -> Path:
    """Return where the demonstrations of `task` lie below `root`."""
    return root / task.suite / f"{task.name}_demo.hdf5"


def scan(
    root: Path, suite: str, tasks: Sequence[Task], cameras: Sequence[str] = tuple(IMAGE_KEYS)
) -> tuple[list[Demo], list[Quarantined]]:
    """Check the demonstrations of these tasks; return the usable ones in order of task and number, and the others.

    Everything but the pixels is read. Damage of a file or demo is reported in the second list, never raised.

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
        if not path.is_file():
            raise DataError(f"{path}: no demonstrations of {suite} task {task.id} there. {REMEDY}")
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
        raise DataError(f"{demo.file} {demo.name}: cannot be read: {error}. Make or download it again.") from error


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


def manifest(demos: Iterable[Demo]) -> list[dict[str, Any]]:
    """Return, for each demo, JSON-able facts that change when its content does: the source of a store's fingerprint.

    The digest covers every data set of the demo, pixels included, and neither path nor time stamps: a copy or a DVC
    checkout of the same data has the same manifest.
    """
    return [
        {
            "suite": demo.task.suite,
            "task": demo.task.id,
            "file": demo.file.name,
            "demo": demo.name,
            "frames": demo.length,
            "sha256": digest(demo),
        }
        for demo in demos
    ]


def digest(demo: Demo) -> str:
    """Return the SHA-256 of all data sets of one demo (name, type, shape, bytes), in the order of their names.

    Raises:
        DataError: the file cannot be read (any more).
    """
    total = hashlib.sha256()
    try:
        with h5py.File(demo.file, "r") as file:
            for name, dataset in _datasets(file["data"][demo.name]):
                total.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode())
                total.update(np.ascontiguousarray(dataset[()]).data)
    except UNREADABLE as error:
        raise DataError(f"{demo.file} {demo.name}: cannot be read: {error}. Make or download it again.") from error
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


def _datasets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(group):
        if isinstance(group[key], h5py.Group):
            yield from _datasets(group[key], f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", group[key]


def image_key(camera: str) -> str:
    """Return the data set below `obs/` that holds what a camera saw.

    Raises:
        DataError: no such camera.
    """
    keys = IMAGE_KEYS | DEPTH_KEYS
    if camera not in keys:
        raise DataError(f"no camera {camera!r} in LIBERO's demonstrations.{did_you_mean(camera, keys)}")
    return keys[camera]


def _pictures(obs: Any, camera: str, rows: slice) -> np.ndarray:
    frames = upright(obs[image_key(camera)][rows])
    return depth_picture(frames) if is_depth(camera) else frames


def _scan_file(path: Path, task: Task, cameras: Sequence[str]) -> tuple[list[Demo], list[Quarantined]]:
    try:
        with h5py.File(path, "r") as file:
            if "data" not in file:
                return [], [Quarantined(path, None, "has no group /data: not a LIBERO demonstration file")]
            data = file["data"]
            names = sorted((n for n in data if n[:5] == "demo_" and n[5:].isdigit()), key=lambda n: int(n[5:]))
            demos: list[Demo] = []
            damaged: list[Quarantined] = []
            for name in names:
                reason = _defect(data, name, cameras)
                if reason is None:
                    group = data[name]
                    size = group["obs"][image_key(cameras[0])].shape[1] if cameras else 0
                    optional = tuple(ours for ours, theirs in OPTIONAL.items() if theirs in group)
                    demos.append(Demo(task, path, name, len(group["actions"]), optional, size))
                else:
                    damaged.append(Quarantined(path, name, reason))
            promised = int(data.attrs.get("num_demos", len(names)))
            if not names:
                damaged.append(Quarantined(path, None, "holds no demos"))
            for name in sorted({f"demo_{i}" for i in range(promised)} - set(names), key=lambda n: int(n[5:])):
                damaged.append(Quarantined(path, name, f"missing, though num_demos is {promised}"))
            return demos, damaged
    except UNREADABLE as error:  # what h5py raises for a truncated or foreign file
        return [], [Quarantined(path, None, f"cannot be opened ({_first_line(error)}): truncated or not HDF5")]


def _defect(data: Any, name: str, cameras: Sequence[str]) -> str | None:
    """Return what is wrong with one demo, or None."""
    try:
        group = data[name]
        return _shape_defect(group, cameras) or _value_defect(group)
    except (*UNREADABLE, TypeError, AttributeError) as error:
        return f"cannot be read: {_first_line(error)}"


def _shape_defect(group: Any, cameras: Sequence[str]) -> str | None:
    widths: dict[str, int | None] = dict(LOWDIM_WIDTHS)
    widths |= {name: width for name, width in OPTIONAL_WIDTHS.items() if name in group}
    images = {f"obs/{image_key(camera)}": (np.uint16, 1) if is_depth(camera) else (np.uint8, 3) for camera in cameras}
    for name in (*widths, *images):
        if name not in group:
            return f"lacks {name}"
    length = len(group["actions"])
    if length < 2:
        return f"has {length} steps; two are the least"
    for name, width in widths.items():
        shape = group[name].shape
        tail_ok = len(shape) == 2 if width is None else shape[1:] == ((width,) if width else ())
        if not tail_ok:
            return f"{name} has shape {shape}, expected (T{f', {width}' if width else ''})"
    for name, (dtype, channels) in images.items():
        data = group[name]
        if data.dtype != dtype or data.ndim != 4 or data.shape[3] != channels or data.shape[1] != data.shape[2]:
            return f"{name} is {data.dtype} {data.shape}, expected {np.dtype(dtype)} (T, S, S, {channels})"
    for name in (*widths, *images):
        if len(group[name]) != length:
            return f"{name} has {len(group[name])} rows, but actions has {length}"
    promised = group.attrs.get("num_samples", length)
    if int(promised) != length:
        return f"num_samples is {promised}, but actions has {length} rows"
    return None


def _value_defect(group: Any) -> str | None:
    for name in (*LOWDIM_WIDTHS, *(n for n in OPTIONAL_WIDTHS if n in group)):
        if not np.isfinite(group[name][()]).all():
            return f"{name} has values that are not finite"
    for name in ("actions", *(("expert_actions",) if "expert_actions" in group else ())):
        actions = group[name][()]
        if (largest := np.abs(actions).max()) > 1:
            return f"{name} reaches {largest:.4g}; the range is [-1, 1]"
        if not np.isin(actions[:, 6], (-1, 1)).all():
            return f"{name} has a gripper command other than -1 (open) and +1 (close)"
    actions = group["actions"][()]
    if no_ops(actions).all():
        return "is a no-op from beginning to end"
    return None


def no_ops(actions: np.ndarray) -> np.ndarray:
    """Return (T,) bool: steps that neither move the arm nor change the gripper command. Actions: (T, 7)."""
    still = np.linalg.norm(actions[:, :6], axis=1) < NO_OP_NORM
    same = np.concatenate([[True], actions[1:, 6] == actions[:-1, 6]])
    return still & same


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
