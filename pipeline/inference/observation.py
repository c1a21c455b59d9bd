"""Observations from anywhere: checked against what the policy takes, and brought into its form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import DataError
from pipeline.inference.describe import own_data, wanted
from pipeline.libero.depth import depth_picture, is_depth
from pipeline.policy.bundle import PolicySpec

IMAGE_AXES = 3
NORM_TOLERANCE = 0.01  # of a quaternion: float16 keeps it within 0.001, an axis-angle is far off
MAX_INSTRUCTION = 1000  # characters. CLIP reads 77 tokens; this bounds what a stranger can make the tokenizer do


def checked(spec: PolicySpec, observation: Any, axes: Sequence[int] = (0, 1)) -> dict[str, np.ndarray]:
    """Return the policy's inputs, and nothing else of `observation`.

    Args:
        axes: how many axes may come before those of a single observation, the same in every entry.

    Returns:
        Images uint8 (*axes, H, W, 3), depth as its picture; signals float32 (*axes, k), LIBERO's ee_pose with q_x >= 0.

    Raises:
        DataError: names every entry that is missing, of another shape or type, or not finite, and what is wanted.
    """
    arch = spec.architecture
    if not isinstance(observation, Mapping):
        raise DataError(f"an observation is a mapping of names to arrays, not {type(observation).__name__}")
    inputs: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for name in (*arch.cameras, *arch.proprio):
        if name not in observation:
            wrong.append(f"{name!r} is missing among {', '.join(sorted(map(repr, observation))) or 'none'}")
            continue
        try:
            if name in arch.cameras:
                inputs[name] = _image(name, observation[name])
            else:
                values = _signal(observation[name], arch.proprio_dims[name])
                is_pose = name == "ee_pose" and own_data(spec) is None
                inputs[name] = _one_hemisphere(values) if is_pose else values
        except (DataError, TypeError, ValueError) as error:
            wrong.append(f"{name!r} {error}")
    if not wrong:
        wrong = _axes_differ(inputs, arch.cameras, axes)
    if wrong:
        raise DataError(f"observation: {'; '.join(wrong)}. This policy takes {wanted(spec)}")
    return inputs


def instructions_of(instruction: Any, rows: int) -> list[str]:
    """Return an instruction for each row: the one for all, or a list of them.

    Raises:
        DataError: not strings, too long, or not as many as rows.
    """
    texts = [instruction] * rows if isinstance(instruction, str) else instruction
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"an instruction is a string, or a list of them for a batch, not {type(instruction).__name__}")
    if len(texts) != rows:
        raise DataError(f"{len(texts)} instructions for {rows} observations: give one for each, or one string for all")
    if longest := max((len(text) for text in texts if len(text) > MAX_INSTRUCTION), default=0):
        raise DataError(f"an instruction has {longest} characters; at most {MAX_INSTRUCTION} are taken")
    return list(texts)


def centre_crop(frames: UInt8[np.ndarray, "*batch H W 3"]) -> UInt8[np.ndarray, "*batch S S 3"]:
    """Return the square in the middle of frames; of an odd rest, the larger part lies to the right and below."""
    height, width = frames.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side, :]


def _image(camera: str, given: Any) -> np.ndarray:
    frames = np.asarray(given)
    if is_depth(camera) and frames.dtype == np.uint16:
        _require(frames, (1,), IMAGE_AXES, "(H, W, 1) for millimetres")
        return depth_picture(frames)
    if frames.dtype != np.uint8:
        hint = ": multiply what is in [0, 1] by 255 and round it" if frames.dtype.kind == "f" else ""
        raise DataError(f"is {frames.dtype}, not uint8{hint}")
    _require(frames, (3,), IMAGE_AXES, "(H, W, 3)")
    return np.require(frames, requirements="W")  # torch shares the memory only of what may be written to


def _signal(given: Any, size: int) -> np.ndarray:
    values = np.asarray(given)
    if values.dtype.kind not in "fiu":
        raise DataError(f"is {values.dtype}, not float32")
    _require(values, (size,), 1, f"({size},)")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"holds {values[~np.isfinite(values)][0]}: every number must be finite")
    return values


def _require(array: np.ndarray, last: tuple[int, ...], axes: int, shape: str) -> None:
    if array.ndim < axes or array.shape[-1:] != last or 0 in array.shape:
        raise DataError(f"has shape {array.shape}, not {shape}, nor that after the axis of a batch")


def _one_hemisphere(pose: np.ndarray) -> np.ndarray:
    """Return poses with q_x >= 0 (see `pipeline.libero.proprio`)."""
    quat = pose[..., 3:]
    norm = np.linalg.norm(quat.astype(np.float64), axis=-1)
    if (off := np.abs(norm - 1) > NORM_TOLERANCE).any():
        raise DataError(f"has a quaternion (its last four numbers) of norm {norm[off].flat[0]:.3g}, not 1")
    return np.concatenate([pose[..., :3], np.where(quat[..., :1] < 0, -quat, quat)], axis=-1)


def _axes_differ(inputs: Mapping[str, np.ndarray], cameras: Sequence[str], axes: Sequence[int]) -> list[str]:
    """Return what is wrong with the axes before those of one observation: none of `axes` many, or not alike."""
    before = {name: x.shape[: x.ndim - (IMAGE_AXES if name in cameras else 1)] for name, x in inputs.items()}
    first = next(iter(before.values()))
    if set(before.values()) != {first}:
        return [f"entries of different batches: {', '.join(f'{name} {shape}' for name, shape in before.items())}"]
    if len(first) not in axes:
        allowed = " or ".join(map(str, axes))
        return [f"{len(first)} axes before those of one observation, {first}, where {allowed} can be"]
    return []
