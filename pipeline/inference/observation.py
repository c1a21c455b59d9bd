"""Observations from anywhere: checked against what a policy takes, and brought into its form.

Neither torch nor jaxtyping is imported: an exported policy checks by this, too. What a policy takes is the tree that
`describe.describe` returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import DataError

T = TypeVar("T")
IMAGE_AXES = 3
NORM_TOLERANCE = 0.01  # of a quaternion: float16 keeps it within 0.001, an axis-angle is far off
MAX_INSTRUCTION = 1000  # characters. CLIP reads 77 tokens; this bounds what a stranger can make the tokenizer do


def checked(described: Mapping[str, Any], observation: Any, axes: Sequence[int] = (0, 1)) -> dict[str, np.ndarray]:
    """Return the policy's inputs, and nothing else of `observation`.

    Args:
        described: what the policy takes.
        axes: how many axes may come before those of a single observation, the same in every entry.

    Returns:
        Images uint8 (*axes, H, W, 3), depth as its picture; signals float32 (*axes, k), LIBERO's ee_pose with q_x >= 0.

    Raises:
        DataError: names every entry that is missing, of another shape or type, or not finite, and what is wanted.
    """
    if not isinstance(observation, Mapping):
        raise DataError(f"an observation is a mapping of names to arrays, not {type(observation).__name__}")
    inputs: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for name, wants in described["inputs"].items():
        if name not in observation:
            wrong.append(f"{name!r} is missing among {', '.join(sorted(map(repr, observation))) or 'none'}")
            continue
        try:
            given = np.asarray(observation[name])
            inputs[name] = _image(given, wants) if is_image(wants) else _signal(given, wants["shape"][0])
            if name == "ee_pose" and "own" not in described:  # another robot's may be anything
                inputs[name] = _one_hemisphere(inputs[name])
        except (DataError, TypeError, ValueError) as error:
            wrong.append(f"{name!r} {error}")
    if not wrong:
        wrong = _axes_differ(inputs, [name for name, wants in described["inputs"].items() if is_image(wants)], axes)
    if wrong:
        raise DataError(f"observation: {'; '.join(wrong)}. This policy takes {wanted(described)}")
    return inputs


def window(past: Sequence[T], n_obs_steps: int, stride: int) -> list[T]:
    """Return what a policy sees when the last of `past` is the newest, oldest first.

    Of fewer than it sees, the oldest stands in for those before it.
    """
    newest = len(past) - 1
    return [past[max(0, newest - i * stride)] for i in reversed(range(n_obs_steps))]


def is_image(wants: Mapping[str, Any]) -> bool:
    """Return whether an input, as it is described, is a camera's."""
    return len(wants["shape"]) == IMAGE_AXES


def wanted(described: Mapping[str, Any]) -> str:
    """Return the inputs in one line, for messages."""
    parts = (
        f"{name}: {wants['dtype']} ({', '.join(map(str, wants['shape']))}), {wants['unit']}"
        for name, wants in described["inputs"].items()
    )
    return "; ".join(parts)


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


def centre_crop(frames: np.ndarray) -> np.ndarray:
    """Return the square in the middle of frames (..., H, W, 3). Of an odd rest, the smaller half goes first."""
    height, width = frames.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side, :]


def _image(frames: np.ndarray, wants: Mapping[str, Any]) -> np.ndarray:
    """Return frames as the policy learnt from them. Depth comes in millimetres alone, never as a picture of them."""
    shape = f"({', '.join(map(str, wants['shape']))})"
    if frames.dtype != wants["dtype"]:
        hint = ""
        if wants["dtype"] == "uint8" and frames.dtype.kind == "f":
            hint = ": multiply what is in [0, 1] by 255 and round it"
        raise DataError(f"is {frames.dtype}, not {wants['dtype']}{hint}")
    _require(frames, wants["shape"][-1], IMAGE_AXES, shape)
    if frames.dtype == np.uint16:
        from pipeline.libero.depth import depth_picture  # takes jaxtyping, which only a policy with depth has to have

        return depth_picture(frames)
    return np.require(frames, requirements="W")  # torch shares the memory only of what may be written to


def _signal(values: np.ndarray, size: int) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise DataError(f"is {values.dtype}, not float32")
    _require(values, size, 1, f"({size},)")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"holds {values[~np.isfinite(values)][0]}: every number must be finite")
    return values


def _require(array: np.ndarray, last: int, axes: int, shape: str) -> None:
    if array.ndim < axes or array.shape[-1:] != (last,) or 0 in array.shape:
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
