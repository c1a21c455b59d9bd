"""Demonstrations of your own (`demos.source: own`): any robot's, in a LeRobotDataset or in HDF5, by `demos.keys`.

They lie behind links in `<suite>/data/`; index.json beside it holds the keys. Frames are upright in such data, as
people look at them, and the largest square in their middle is what is seen of them: CLIP takes squares.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.data import hdf5, lerobot
from pipeline.data import keys as naming
from pipeline.errors import DataError, did_you_mean
from pipeline.libero.demos.layout import INDEX
from pipeline.libero.demos.read import Quarantined
from pipeline.libero.settings import Keys

log = logging.getLogger(__name__)

FRAMES_ID = "upright/centre-square/v1"
"""Name of what `square` does to frames; written into stores, to be changed with it."""
DATA = "data"
GUIDE = "docs/own_data.md tells what is read"
Episode = lerobot.Episode | hdf5.Episode


@dataclass(frozen=True)
class Task:
    """An instruction of the data set. `id` counts them, in the order in which demonstrations have them."""

    suite: str
    id: int
    name: str
    language: str


@dataclass(frozen=True)
class Demo:
    """One usable demonstration.

    Attributes:
        source: what a store calls it: file/demonstration.
        sizes: of each camera, pixels along a side of the square that is seen of its frames.
        widths: of each signal: the states, and "action".
    """

    task: Task
    episode: Episode
    source: str
    keys: Keys
    fps: float | None
    sizes: Mapping[str, int]
    widths: Mapping[str, int]
    obs_shift: int | None = None  # cannot be measured

    def __str__(self) -> str:
        return f"{self.file} {self.name}"

    @property
    def file(self) -> Path:
        """Where its rows are."""
        return self.episode.file

    @property
    def name(self) -> str:
        """Of it in its file."""
        return self.episode.name

    @property
    def number(self) -> int:
        """Which one of its kind it is: a store has all first ones first."""
        return self.episode.number

    @property
    def length(self) -> int:
        """Number of actions T."""
        return self.episode.length

    @property
    def frame_size(self) -> int:
        """Of the first camera."""
        return next(iter(self.sizes.values()))


@dataclass(frozen=True)
class DataSet:
    """Somebody's data set: `root`, read by `keys`.

    Raises:
        DataError: it cannot be used at all; the text lists all reasons.
    """

    suite: str
    root: Path
    keys: Keys

    @classmethod
    def of(cls, directory: Path) -> "DataSet":
        """Return what lies in the directory of a suite.

        Raises:
            DataError: its index.json cannot be read.
        """
        index = read_index(directory)
        try:
            return cls(directory.name, directory / DATA, Keys(**index["own"]["keys"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{directory / INDEX}: is damaged ({error}). Make it again: python -m stages.demos"
            ) from None

    @cached_property
    def reader(self) -> lerobot.LeRobotDataset | hdf5.Hdf5Files:
        """What reads its format."""
        kind = lerobot.LeRobotDataset if (self.root / lerobot.INFO).exists() else hdf5.Hdf5Files
        return kind(self.root, self.keys)

    @cached_property
    def episodes(self) -> list[Episode]:
        """All of them, those with a problem too."""
        return [*self.reader.episodes()]

    def tasks(self) -> list[Task]:
        """Return the instructions, in the order in which demonstrations have them."""
        told = dict.fromkeys(episode.instruction for episode in self.episodes if episode.instruction)
        return [Task(self.suite, i, "_".join(text.split())[:60], text) for i, text in enumerate(told)]

    def scan(self) -> tuple[list[Demo], list[Quarantined]]:
        """Check everything, a few frames of each camera among it; return what is usable, and the rest.

        Raises:
            DataError: nothing is usable; the text lists all reasons.
        """
        tasks = {task.language: task for task in self.tasks()}
        demos: list[Demo] = []
        left_out: list[Quarantined] = []
        for episode in self.episodes:
            try:
                demos.append(self._demo(episode, tasks))
            except DataError as error:
                left_out.append(Quarantined(episode.file, episode.name, str(error)))
        demos, others = _alike(demos)
        left_out += others
        if not demos:
            raise DataError(f"{self.root}: no demonstration is usable. {GUIDE}\n  " + "\n  ".join(_once(left_out)))
        for entry in left_out:
            log.warning("quarantined %s", entry)
        return demos, left_out

    def find(self, name: str | None = None, file: Path | None = None) -> Demo:
        """Return the demonstration of that name, the first one without a name; in `file` alone, if that is given.

        Raises:
            DataError: there is none, or it cannot be used; the text lists all reasons.
        """
        there = [episode for episode in self.episodes if file is None or episode.file == file]
        named = [episode for episode in there if name is None or episode.name == name]
        if not named:
            known = [episode.name for episode in there]
            which = f"{name!r}.{did_you_mean(name, known)}" if name and known else "such demonstration"
            raise DataError(f"{file or self.root}: has no {which} {GUIDE}")
        try:
            return self._demo(named[0], {task.language: task for task in self.tasks()})
        except DataError as error:
            raise DataError(f"{named[0].file} {named[0].name}: {error}. {GUIDE}") from None

    def _demo(self, episode: Episode, tasks: Mapping[str, Task]) -> Demo:
        """Return a demonstration. Raises DataError with all that is wrong with it."""
        if episode.problem:
            raise DataError(episode.problem)
        if episode.length < 2:
            raise DataError(f"has {episode.length} steps; two are the least")
        if not episode.instruction.strip():
            raise DataError("its instruction, of demos.keys.instruction, is empty")
        widths: dict[str, int] = {}
        wrong: list[str] = []
        for name, key in naming.signals(self.keys).items():
            values = episode.rows(key)
            widths[name] = values.shape[1]
            if not np.isfinite(values).all():
                wrong.append(f"{key} has values that are not finite")
            if not values.shape[1]:
                wrong.append(f"{key} has no columns")
        sizes: dict[str, int] = {}
        for camera, key in self.keys.cameras.items():
            looked_at = [episode.frames(key, i, i + 1)[0] for i in (0, episode.length // 2, episode.length - 1)]
            sizes[camera] = min(looked_at[0].shape[:2])
            if all((frame == frame[0, 0]).all() for frame in looked_at):
                wrong.append(f"the first, the middle and the last frame of {key} are of one colour each")
        if wrong:
            raise DataError("; ".join(wrong))
        source = f"{episode.file.relative_to(self.root).as_posix()}/{episode.name}"
        return Demo(tasks[episode.instruction], episode, source, self.keys, self.reader.fps, sizes, widths)


def _alike(demos: Sequence[Demo]) -> tuple[list[Demo], list[Quarantined]]:
    """Return the demonstrations of the widths and frame sizes that most have, and the others with what differs."""
    kinds = Counter((*demo.widths.items(), *demo.sizes.items()) for demo in demos)
    usual = kinds.most_common(1)[0][0] if kinds else ()
    kept: list[Demo] = []
    left_out: list[Quarantined] = []
    for demo in demos:
        kind = (*demo.widths.items(), *demo.sizes.items())
        pairs = zip(kind, usual, strict=True)
        different = [f"{name} has the size {k}, in most it is {most}" for (name, k), (_, most) in pairs if k != most]
        if different:
            reason = f"{'; '.join(different)}. One data set takes one robot, and one size of frames"
            left_out.append(Quarantined(demo.file, demo.name, reason))
        else:
            kept.append(demo)
    return kept, left_out


def read_index(directory: Path) -> dict[str, Any]:
    """Return the content of a suite's index.json.

    Raises:
        DataError: it is not there, or damaged.
    """
    try:
        found = json.loads((directory / INDEX).read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{directory / INDEX}: cannot be read ({error}). Make it: python -m stages.demos") from None


def is_own(directory: Path) -> bool:
    """Return whether a suite's directory holds data of one's own."""
    return (directory / DATA).is_dir() and (directory / INDEX).is_file()


def choose(tasks: Sequence[Task], ids: Sequence[int] | None) -> tuple[Task, ...]:
    """Return the tasks with these ids, in the order asked for; None is all.

    Raises:
        DataError: there is no such task.
    """
    by_id = {task.id: task for task in tasks}
    if unknown := sorted({*(ids or ())} - by_id.keys()):
        known = "; ".join(f"{task.id} {task.language}" for task in tasks)
        raise DataError(f"data.tasks.{tasks[0].suite} has {unknown}; the data set has: {known}")
    return tuple(tasks) if ids is None else tuple(by_id[i] for i in ids)


def read(demo: Demo, cameras: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Read rows `start:stop` of one demonstration.

    Returns:
        images: camera -> (n, S, S, 3) uint8, upright. Each state, and action: (n, k) float32.

    Raises:
        DataError: it cannot be read (any more).
    """
    last = demo.length if stop is None else min(stop, demo.length)
    signals = naming.signals(demo.keys)
    rows = {name: demo.episode.rows(key, start, last).astype(np.float32) for name, key in signals.items()}
    return {"images": {c: square(demo.episode.frames(demo.keys.cameras[c], start, last)) for c in cameras}, **rows}


def square(frames: UInt8[np.ndarray, "n H W 3"]) -> UInt8[np.ndarray, "n S S 3"]:
    """Return the largest square in the middle of each frame. Of an odd rest the smaller half goes first."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(frames[:, top : top + side, left : left + side])


def digest(demo: Demo) -> str:
    """Return the SHA-256 of all that `demos.keys` names of one demonstration. Neither path nor place counts.

    Raises:
        DataError: it cannot be read (any more).
    """
    total = hashlib.sha256(demo.task.language.encode())
    for name, key in sorted(naming.signals(demo.keys).items()):
        values = demo.episode.rows(key)
        total.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        total.update(np.ascontiguousarray(values).data)
    for name, key in sorted(demo.keys.cameras.items()):
        total.update(f"\n{name}\n".encode())
        for part in demo.episode.content(key):
            total.update(part)
    return total.hexdigest()


def identity(demos: Sequence[Demo]) -> dict[str, Any]:
    """Return how the data were made, for a store: JSON."""
    return {"keys": asdict(demos[0].keys), "fps": demos[0].fps, "frames": FRAMES_ID}


def _once(left_out: Sequence[Quarantined]) -> Iterator[str]:
    """Yield each reason once, with where it is found."""
    places: dict[str, list[Quarantined]] = {}
    for entry in left_out:
        places.setdefault(entry.reason, []).append(entry)
    for entries in places.values():
        yield f"{entries[0]}{f' (and so {len(entries) - 1} more)' if entries[1:] else ''}"
