"""What can be wrong with a demonstration file, in words; and which way round its observations were recorded."""

import errno
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.libero.demos.layout import IMAGE_KEYS, LOWDIM_WIDTHS, OPTIONAL_WIDTHS, UPSIDE_DOWN, image_key
from pipeline.libero.depth import is_depth

NO_OP_NORM = 1e-4
"""A step is a no-op if the first six action values have a smaller norm and the gripper command stays (OpenVLA)."""
FRAMES_LOOKED_AT = 8  # of each camera, from the first to the last
JOINTS = slice(1, 8)
"""Of a flattened simulator state: its time comes first, then qpos, of which the arm's seven joints are the first."""
NEARER, MOVED_RAD = 4, 0.01
"""The joints of an observation are within 0.003 rad of the state it shows, and at their fastest 0.05 to 0.08 from the
one a step away (69 scripted demonstrations of libero_spatial)."""


def not_a_file(path: Path) -> str | None:
    """Return why there is no file to open, or None."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a symbolic link that leads back to itself"
        if path.is_symlink():
            return f"is a symbolic link to {path.readlink()}, which is not there"
        return "is not there" if error.errno == errno.ENOENT else f"cannot be opened: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
    return f"is {kind}, not a file"


def not_hdf5(path: Path) -> str | None:
    """Return what a file that h5py cannot open is, or None if it begins as HDF5 does."""
    if h5py.is_hdf5(path):
        return None
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        return "is empty"
    if start.startswith(b"<"):
        return "is a web page, not HDF5: a download that failed"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not HDF5: fetch the file with git lfs pull"
    return "is not HDF5"


def file_defect(data: Any) -> str | None:
    """Return what is wrong with a file as a whole, by the attributes of its group /data."""
    convention = data.attrs.get("macros_image_convention", UPSIDE_DOWN)
    if convention != UPSIDE_DOWN:
        return (
            f"macros_image_convention is {convention!r}: its frames are not upside-down as LIBERO's are, and would be "
            f"turned the wrong way. Flip obs/*_rgb vertically and set the attribute to {UPSIDE_DOWN!r}"
        )
    return None


def demo_defect(group: Any, cameras: Sequence[str]) -> str | None:
    """Return what is wrong with one demonstration, or None."""
    return _shape_defect(group, cameras) or _value_defect(group) or _picture_defect(group, cameras)


def whole_number(attrs: Any, name: str, default: int) -> tuple[int, str | None]:
    """Return an attribute (LIBERO writes some as text), and what is wrong with it."""
    value = attrs.get(name, default)
    try:
        return int(value), None
    except (TypeError, ValueError):
        return default, f"the attribute {name} is {value!r}, which is no number"


def obs_shift(group: Any) -> int | None:
    """Return the `embed.obs_shift` that this demonstration needs, as its joints and states tell.

    1: `obs[t]` shows the state after `action[t]`, which is `states[t + 1]`, as LIBERO records. 0: it shows `states[t]`,
    before the action. None: not measured, for want of full states or of motion.
    """
    if "states" not in group or group["states"].shape[1] < JOINTS.stop:
        return None
    joints, states = group["obs/joint_states"][()], group["states"][:, JOINTS]
    before, after = np.abs(joints[:-1] - states[:-1]).max(), np.abs(joints[:-1] - states[1:]).max()
    if max(before, after) < max(NEARER * min(before, after), MOVED_RAD):
        return None
    return int(after < before)


def no_ops(actions: np.ndarray) -> np.ndarray:
    """Return (T,) bool: steps that neither move the arm nor change the gripper command. Actions: (T, 7)."""
    still = np.linalg.norm(actions[:, :6], axis=1) < NO_OP_NORM
    same = np.concatenate([[True], actions[1:, 6] == actions[:-1, 6]])
    return still & same


def _shape_defect(group: Any, cameras: Sequence[str]) -> str | None:
    widths: dict[str, int | None] = dict(LOWDIM_WIDTHS)
    widths |= {name: width for name, width in OPTIONAL_WIDTHS.items() if name in group}
    images = {f"obs/{image_key(camera)}": (np.uint16, 1) if is_depth(camera) else (np.uint8, 3) for camera in cameras}
    if missing := [name for name in (*widths, *images) if name not in group]:
        return f"lacks {', '.join(missing)}"
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
    promised, wrong = whole_number(group.attrs, "num_samples", length)
    return wrong or (f"num_samples is {promised}, but actions has {length} rows" if promised != length else None)


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
    if no_ops(group["actions"][()]).all():
        return "is a no-op from beginning to end"
    return None


def _picture_defect(group: Any, cameras: Sequence[str]) -> str | None:
    """Look at some frames of each colour camera: none is of a single colour, unless the renderer failed."""
    for name in (f"obs/{IMAGE_KEYS[camera]}" for camera in cameras if not is_depth(camera)):
        length = len(group[name])
        for row in np.linspace(0, length - 1, min(length, FRAMES_LOOKED_AT)).astype(int):
            frame = group[name][row]
            if (frame == frame[0, 0]).all():
                return f"frame {row} of {name} is all {'black' if not frame.any() else 'one colour'}"
    return None
