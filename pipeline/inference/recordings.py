"""What a policy is shown from files: pictures, a demonstration in LIBERO's layout, or videos with the robot's state."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError, did_you_mean
from pipeline.inference.describe import own_data
from pipeline.libero.demos.defects import demo_defect, not_a_file, not_hdf5, obs_shift
from pipeline.libero.demos.layout import OPTIONAL
from pipeline.libero.demos.read import UNREADABLE, Demo, read
from pipeline.libero.settings import Keys
from pipeline.libero.suites import Task, language_of
from pipeline.policy.bundle import PolicySpec

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")  # none that Pillow starts a program for


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


def videos(films: Mapping[str, Path], state: Path | None, frames_of: Callable[[Path], np.ndarray]) -> Recording:
    """Return a recording of as many steps as the shortest of the files has.

    Args:
        films: camera -> video, a frame for each control step.
        state: as of `pictures`, with a row of numbers for each step.
        frames_of: returns a video's frames (T, H, W, 3).

    Raises:
        DataError: a file that cannot be read.
    """
    shown = {}
    for camera, path in films.items():
        try:
            shown[camera] = frames_of(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a video ({error})") from None
    signals = read_state(state) if state else {}
    for name, rows in signals.items():
        if rows.ndim != 2:
            raise DataError(f"{state}: {name} has shape {rows.shape}; with a video it needs a row for each frame")
    return Recording(shown | signals)


def demonstration(path: Path, name: str | None, spec: PolicySpec) -> Recording:
    """Return one demonstration, upright, with the actions that followed.

    Args:
        path: an HDF5 file in LIBERO's layout; for a policy that was trained on data of another robot, such a data set,
            or an HDF5 file of one. Its actions are taken for those after the observations of the same row.
        name: of the demonstration, such as "demo_0"; None: that, of own data the first one.
        spec: of the policy, whose inputs are read.

    Raises:
        DataError: the file or the demonstration is not there, is damaged, or lacks an input.
    """
    if (own := own_data(spec)) is not None:
        return _own(path, name, Keys(**own["keys"]), spec)
    name = name or "demo_0"
    if problem := not_a_file(path) or not_hdf5(path):
        raise DataError(f"{path} {problem}")
    cameras = spec.architecture.cameras
    demo, shift, language = _open(path, name, cameras)
    rows: dict[str, Any] = read(demo, cameras)
    observations = {**rows["images"], **{k: rows[k] for k in spec.architecture.proprio if k in rows}}
    # Recorded after its action (shift 1), an observation is followed by the next row's.
    following = np.full_like(rows["action"], np.nan)
    following[: len(following) - shift] = rows["action"][shift:]
    return Recording(observations, language, following, name)


def _own(path: Path, name: str | None, keys: Keys, spec: PolicySpec) -> Recording:
    """Return one demonstration of a data set of another robot; the first without a name. Raises DataError."""
    from pipeline.data import own  # its libraries take a second to import

    if not path.exists():
        raise DataError(f"{path}: is not there; it must be a data set like the one that the policy was trained on")
    in_file = None if path.is_dir() else path
    data = own.DataSet("own", path.parent if in_file else path, keys)
    demo = data.find(name, in_file)
    rows = own.read(demo, spec.architecture.cameras)
    observations = {**rows["images"], **{state: rows[state] for state in spec.architecture.proprio}}
    return Recording(observations, demo.task.language, rows["action"], demo.name)


def picture(path: Path) -> np.ndarray:
    """Return a picture file as uint8 (H, W, 3); one of 16 bit grey as uint16 (H, W, 1), millimetres of depth.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)  # a phone's picture says which way is up
            if image.mode.startswith("I;16"):
                return np.asarray(image, np.uint16)[..., None]
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error})") from None


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
    except (OSError, ValueError, TypeError, AttributeError) as error:
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
