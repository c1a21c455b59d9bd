"""Observations from files: pictures, a demonstration, or videos with the robot's state."""

import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32
from PIL import ImageOps

from pipeline.data.pictures import opened
from pipeline.errors import DataError, did_you_mean
from pipeline.inference.describe import own_data
from pipeline.libero.conventions import upright
from pipeline.libero.demos.defects import demo_defect, not_a_file, not_hdf5, obs_shift
from pipeline.libero.demos.layout import OPTIONAL, image_key
from pipeline.libero.demos.read import UNREADABLE, Demo, read
from pipeline.libero.depth import is_depth
from pipeline.libero.settings import Keys
from pipeline.libero.suites import Task, language_of
from pipeline.policy.bundle import PolicySpec

UNREADABLE_STATE = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, SyntaxError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What json and NumPy raise for a file that is damaged, or another kind of file."""


@dataclass(frozen=True)
class Recording:
    """Observations one after the other.

    Attributes:
        observations: input -> (T, ...), as `Policy` takes them.
        instruction: that goes with them; None if the files do not say.
        actions: (T, A) that followed each observation; None if they are not known. NaN where there is none.
        name: of a demonstration; None of other files.
    """

    observations: Mapping[str, np.ndarray]
    instruction: str | None = None
    actions: Float32[np.ndarray, "T A"] | None = None
    name: str | None = None

    def __len__(self) -> int:
        return min(len(x) for x in self.observations.values())

    def at(self, step: int) -> dict[str, np.ndarray]:
        """Return one observation."""
        return {name: x[step] for name, x in self.observations.items()}


def pictures(images: Mapping[str, Path], state: Path | None) -> Recording:
    """Return a recording of one step.

    Args:
        images: camera -> file of a picture.
        state: JSON or .npz file with the numbers of each signal.

    Raises:
        DataError: a file that cannot be read.
    """
    shown = {camera: picture(path)[None] for camera, path in images.items()}
    return Recording(shown | {name: x[None] for name, x in (read_state(state) if state else {}).items()})


def videos(files: Mapping[str, Path], state: Path | None) -> Recording:
    """Return a recording of as many steps as the shortest of the files has.

    Args:
        files: camera -> video, a frame for each control step.
        state: as of `pictures`, with a row of numbers for each step.

    Raises:
        DataError: a file that cannot be read.
    """
    from pipeline.data.video import all_frames  # PyAV takes a second to import

    shown = {camera: all_frames(path) for camera, path in files.items()}
    signals = read_state(state) if state else {}
    for name, rows in signals.items():
        if rows.ndim != 2:
            raise DataError(f"{state}: {name} has shape {rows.shape}; with a video it needs a row for each frame")
    return Recording(shown | signals)


def demonstration(path: Path, name: str | None, spec: PolicySpec) -> Recording:
    """Return one demonstration, upright, with the actions that followed.

    Args:
        path: an HDF5 file in LIBERO's layout; for a policy that was trained on data of another robot, such a data set,
            or an HDF5 file of one.
        name: of the demonstration, such as "demo_0"; None: that, of own data the first one.
        spec: of the policy, whose inputs are read.

    Raises:
        DataError: the file or the demonstration is not there, is damaged, or lacks an input.
    """
    if (own := own_data(spec)) is not None:
        return _own(path, name, own, spec)
    name = name or "demo_0"
    if problem := not_a_file(path) or not_hdf5(path):
        raise DataError(f"{path} {problem}")
    cameras = spec.architecture.cameras
    demo, shift, language = _open(path, name, cameras)
    rows: dict[str, Any] = read(demo, [camera for camera in cameras if not is_depth(camera)])
    observations = {**rows["images"], **_depths(demo, [camera for camera in cameras if is_depth(camera)])}
    observations |= {k: rows[k] for k in spec.architecture.proprio if k in rows}
    return Recording(observations, language, _following(rows["action"], shift), name)


def _following(actions: np.ndarray, shift: int) -> np.ndarray:
    """Return the action that followed each observation: recorded after its action (shift 1), the next row's."""
    found = np.full_like(actions, np.nan)
    found[: len(found) - shift] = actions[shift:]
    return found


def _depths(demo: Demo, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """Return depth as a policy takes it, upright uint16 (T, H, W, 1) in millimetres: `read` gives pictures of it."""
    try:
        with h5py.File(demo.file, "r") as file:
            obs = file["data"][demo.name]["obs"]
            return {camera: upright(obs[image_key(camera)][()]) for camera in cameras}
    except UNREADABLE as error:
        raise DataError(f"{demo}: cannot be read: {error}") from error


def _own(path: Path, name: str | None, learnt: Mapping[str, Any], spec: PolicySpec) -> Recording:
    """Return one demonstration of a data set of another robot; the first without a name. Raises DataError."""
    from pipeline.data import own  # its libraries take a second to import

    if not path.exists():
        raise DataError(f"{path}: is not there; it must be a data set like the one that the policy was trained on")
    in_file = None if path.is_dir() else path
    data = own.DataSet("own", path.parent if in_file else path, Keys(**learnt["keys"]))
    demo = data.find(name, in_file)
    rows = own.read(demo, spec.architecture.cameras)
    observations = {**rows["images"], **{state: rows[state] for state in spec.architecture.proprio}}
    shift = learnt.get("obs_shift", 0)  # not told by bundles of before
    return Recording(observations, demo.task.language, _following(rows["action"], shift), demo.name)


def picture(path: Path) -> np.ndarray:
    """Return a PNG or JPEG file as uint8 (H, W, 3); one of 16 bit grey as uint16 (H, W, 1), millimetres of depth.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with opened(path) as found:
            image = ImageOps.exif_transpose(found)  # a phone's picture says which way is up
            if image.mode.startswith("I;16"):
                return np.asarray(image, np.uint16)[..., None]
            return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as a PNG or JPEG picture ({error})") from None


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a JSON file of names and numbers, or of an .npz file.

    Raises:
        DataError: it is neither.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        return {name: np.array(numbers, np.float64) for name, numbers in json.loads(path.read_text()).items()}
    except UNREADABLE_STATE as error:
        raise DataError(
            f'{path}: is neither JSON of names and numbers, such as {{"gripper": [0.04, -0.04]}}, nor .npz ({error})'
        ) from None


def _open(path: Path, name: str, cameras: Sequence[str]) -> tuple[Demo, int, str | None]:
    """Return a demonstration, how many rows its observations lie after their actions, and its instruction."""
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            if name not in data:
                raise DataError(f"{path}: has no {name}.{did_you_mean(name, data)}")
            if defect := demo_defect(data[name], cameras):
                raise DataError(f"{path} {name}: {defect}")
            optional = tuple(ours for ours, theirs in OPTIONAL.items() if theirs in data[name])
            language = _language(path, data.attrs)
            task = Task("", 0, path.stem, language or "", path, path)
            demo = Demo(task, path, name, len(data[name]["actions"]), optional, 0)
            shift = obs_shift(data[name])
            return demo, 1 if shift is None else shift, language  # LIBERO's own way, where it cannot be measured
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _language(path: Path, attributes: Any) -> str | None:
    """Return the instruction that goes with a file: of LIBERO's that in its name, which LIBERO evaluates with."""
    if path.stem.endswith("_demo"):
        return language_of(path.stem.removesuffix("_demo"))
    try:
        told = json.loads(attributes["problem_info"])["language_instruction"]
    except (KeyError, ValueError, TypeError):
        return None
    return " ".join(told) if isinstance(told, list) else str(told)
