"""Read HDF5 as robomimic lays it out: /data/<demonstration>/<key>; or a file for each demonstration, with no /data."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.data import keys as naming
from pipeline.errors import DataError
from pipeline.libero.demos.defects import not_hdf5
from pipeline.libero.demos.read import UNREADABLE, datasets
from pipeline.libero.settings import Keys

ENDINGS = (".hdf5", ".h5", ".hdf")
AGAIN = "Make or download it again"


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps; it pickles, and holds no handle.

    Attributes:
        number: its place in its file, or, where a file is one demonstration, that of the file.
        group: in the file.
        problem: why it cannot be used, in words; None if it can.
    """

    number: int
    file: Path
    group: str
    length: int
    instruction: str
    problem: str | None = None

    @property
    def name(self) -> str:
        """What a store calls it."""
        return self.group.removeprefix("/data/").strip("/") or "demo"

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows `start:stop` of a data set of numbers, (n, k).

        Raises:
            DataError: the file cannot be read.
        """
        values = self._values(key, slice(start, stop))
        return values.reshape(len(values), -1)

    def frames(self, key: str, start: int, stop: int) -> np.ndarray:
        """Return frames `start:stop` of a camera, (n, H, W, 3) uint8.

        Raises:
            DataError: the file cannot be read.
        """
        return self._values(key, slice(start, stop))

    def content(self, key: str) -> Iterator[bytes]:
        """Yield what decides a camera's frames, for a digest."""
        yield np.ascontiguousarray(self._values(key, slice(None))).data.tobytes()

    def _values(self, key: str, rows: slice) -> np.ndarray:
        try:
            with h5py.File(self.file, "r") as file:
                return file[self.group][key][rows]
        except UNREADABLE as error:
            raise DataError(f"{self.file}: {self.group}/{key} cannot be read: {error}. {AGAIN}") from error


@dataclass(frozen=True)
class Hdf5Files:
    """All HDF5 files below a directory.

    Raises:
        DataError: there is none.
    """

    root: Path
    keys: Keys
    fps: float | None = None  # such files do not tell in one place

    def __post_init__(self) -> None:
        if not self._files():
            raise DataError(f"{self.root}: holds no LeRobotDataset (meta/info.json) and no file {', '.join(ENDINGS)}")

    def episodes(self) -> list[Episode]:
        """Return all demonstrations, those with a problem too, in order of files and names."""
        return [episode for place, file in enumerate(self._files()) for episode in self._of_file(place, file)]

    def _files(self) -> list[Path]:
        found = (path for path in self.root.rglob("*") if path.suffix.lower() in ENDINGS)
        return sorted(found, key=lambda path: natural(str(path.relative_to(self.root))))

    def _of_file(self, place: int, path: Path) -> list[Episode]:
        try:
            if foreign := not_hdf5(path):
                return [Episode(place, path, "/", 0, "", foreign)]
            with h5py.File(path, "r") as file:
                if elsewhere := _outside(file):
                    return [Episode(place, path, "/", 0, "", f"{elsewhere} lies outside of the file: copy it in")]
                if not isinstance(file.get("data"), h5py.Group):
                    return [self._episode(place, path, file, file)]
                names = sorted((n for n in file["data"] if isinstance(file["data"][n], h5py.Group)), key=natural)
                if not names:
                    return [Episode(place, path, "/data", 0, "", "holds no demonstrations")]
                return [self._episode(i, path, file, file["data"][name]) for i, name in enumerate(names)]
        except UNREADABLE as error:
            return [Episode(place, path, "/", 0, "", f"cannot be opened ({error}): truncated or damaged. {AGAIN}")]

    def _episode(self, number: int, path: Path, file: Any, group: Any) -> Episode:
        try:
            problems = list(self._problems(group))
            length = len(group[self.keys.action]) if not problems else 0
            instruction, wrong = self._instruction(file, group)
            problems += [wrong] if wrong else []
            return Episode(number, path, group.name, length, instruction, "; ".join(problems) or None)
        except UNREADABLE as error:
            return Episode(number, path, group.name, 0, "", f"cannot be read ({error}). {AGAIN}")

    def _problems(self, group: Any) -> Iterator[str]:
        there = dict(datasets(group))
        shown = {name: f"{data.dtype} {data.shape}" for name, data in there.items()}
        wanted = {**naming.numbers(self.keys), **naming.pictures(self.keys)}
        for setting, key in wanted.items():
            if key not in there:
                yield naming.missing(setting, key, shown)
        if lacking := {*wanted.values()} - there.keys():
            yield naming.inventory({name: f"{data.dtype} {_each(data)}" for name, data in there.items()})
        if self.keys.action in lacking:
            return
        if not there[self.keys.action].shape:
            yield f"{self.keys.action} is a single number, but keys.action takes a row for each step"
            return
        length = len(there[self.keys.action])
        for setting, key in wanted.items():
            if key not in lacking and (wrong := _misshapen(there[key], setting in naming.pictures(self.keys), length)):
                yield f"{key} is {shown[key]}, but {setting} takes {wrong}"

    def _instruction(self, file: Any, group: Any) -> tuple[str, str | None]:
        """Return what it is told to do: a data set, or an attribute of it, of /data or of the file."""
        key = self.keys.instruction
        if key[:1] == naming.LITERAL:
            return key[1:], None
        if key in group and isinstance(group[key], h5py.Dataset):
            return _first_text(group[key]), None
        name, _, inner = key.partition(".")
        for place in (group, group.parent, file):
            if name in place.attrs:
                return _inner_text(_text(place.attrs[name]), inner, key)
        return "", (
            f"has no {key!r}, which demos.keys.instruction names, as a data set or an attribute. Write "
            f"'{naming.LITERAL}pick up the cube', say, to give all of them one instruction"
        )


def natural(name: str) -> list[tuple[int, str]]:
    """Return what to sort by for demo_2 to come before demo_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _each(data: Any) -> str:
    """Return a shape without the number of steps, which differs from one demonstration to the next."""
    return f"({', '.join(['T', *map(str, data.shape[1:])])})" if data.shape else "()"


def _misshapen(data: Any, picture: bool, length: int) -> str | None:
    """Return what it should be, or None."""
    if picture:
        fits = data.dtype == np.uint8 and data.ndim == 4 and data.shape[3] == 3 and len(data) == length
        return None if fits else f"uint8 ({length}, H, W, 3), upright"
    fits = data.dtype.kind in "fiub" and data.ndim in (1, 2) and len(data) == length
    return None if fits else f"({length}, k) numbers"


def _outside(group: Any, prefix: str = "/") -> str | None:
    """Return the first data set that the file does not hold itself: a link, or one whose values are elsewhere.

    Such a file, of somebody else, could show what else lies on the disk.
    """
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return f"{prefix}{name}"
        item = group[name]
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            return f"{prefix}{name}"
        if isinstance(item, h5py.Group) and (found := _outside(item, f"{prefix}{name}/")):
            return found
    return None


def _first_text(data: Any) -> str:
    return _text(data[()])


def _text(value: Any) -> str:
    """Return a text, or the first one of an array of them; nothing for an empty one."""
    if isinstance(value, np.ndarray):
        value = value.flat[0] if value.size else ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _inner_text(text: str, inner: str, key: str) -> tuple[str, str | None]:
    """Return an attribute, or, of one that is JSON, what `inner` names in it."""
    if not inner:
        return text, None if text else f"its {key} is empty"
    try:
        found = json.loads(text)
        return str(found[inner]), None
    except (ValueError, KeyError, TypeError):
        known = sorted(found) if isinstance(found := _json_or_none(text), Mapping) else []
        return "", naming.missing("demos.keys.instruction", key, known)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
