"""Read a LeRobotDataset of version 3.0 or 2.1 where it lies: tables in Parquet, frames as video or as pictures.

Version 3.0 keeps many episodes in one file, 2.1 one in each. The format is LeRobot's, https://github.com/huggingface/
lerobot; nothing of that package is used.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data import keys as naming
from pipeline.data.pictures import opened
from pipeline.data.tables import AGAIN, numbers, read_column, read_json, read_json_lines, read_table
from pipeline.data.video import frame_times, frames_at, packets
from pipeline.errors import DataError
from pipeline.libero.settings import Keys

INFO = "meta/info.json"
VERSIONS = ("v3.0", "v2.1", "v2.0")
TASK = "task"
"""What `demos.keys.instruction` names to take LeRobot's own task texts."""
TOLERANCE = 0.25
"""Of the time between two frames: how far a frame may be shown from the time of its row, and that from its number."""
COUNTING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that are no data of the robot."""
PLACEHOLDER = re.compile(r"\{(episode_index|episode_chunk|chunk_index|file_index|video_key)(?::(0?\d{1,2}d))?\}")
MAX_TEMPLATE = 500  # characters of a path with its placeholders
MAX_FPS = 10_000


@dataclass(frozen=True)
class Clip:
    """Where an episode's frames of a camera lie: in a video from a time on, or, `file` None, in the table itself."""

    file: Path | None
    start_s: float = 0.0


@dataclass(frozen=True)
class Episode:
    """One episode of T steps; it pickles, and holds no handle.

    Attributes:
        number: episode_index.
        file: its table.
        first: its first row there.
        clips: by camera key.
        problem: why it cannot be used, in words; None if it can.
    """

    root: Path
    number: int
    file: Path
    first: int
    length: int
    instruction: str
    fps: float
    clips: Mapping[str, Clip]
    problem: str | None = None

    @property
    def name(self) -> str:
        """Of it among all of them."""
        return f"episode_{self.number:06d}"

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows `start:stop` of a column of numbers, (n, k).

        Raises:
            DataError: the table cannot be read.
        """
        last = self.length if stop is None else stop
        try:
            return numbers(read_column(self.file, key, self.first + start, self.first + last), self.first + start)
        except (ValueError, pa.ArrowException) as error:
            raise DataError(f"{self.file}: {key} {error}. {AGAIN}") from error

    def frames(self, key: str, start: int, stop: int) -> np.ndarray:
        """Return frames `start:stop` of a camera, (n, H, W, 3) uint8.

        Raises:
            DataError: they cannot be read.
        """
        clip = self.clips[key]
        if clip.file is not None:
            times = clip.start_s + np.arange(start, stop) / self.fps
            return frames_at(clip.file, times, TOLERANCE / self.fps)
        try:
            return np.stack([_picture(content) for content in self._pictures(key, start, stop)])
        except (OSError, ValueError) as error:
            raise DataError(f"{self.file}: {key} of {self.name} holds no pictures ({error}). {AGAIN}") from error

    def content(self, key: str) -> Iterator[bytes]:
        """Yield what decides a camera's frames, for a digest. Raises DataError as `frames` does."""
        clip = self.clips[key]
        if clip.file is None:
            yield from self._pictures(key, 0, self.length)
            return
        half = 0.5 / self.fps
        yield from packets(clip.file, clip.start_s - half, clip.start_s + self.length / self.fps - half)

    def _pictures(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        for cell in read_column(self.file, key, self.first + start, self.first + stop).to_pylist():
            if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
                raise DataError(f"{self.file}: {key} of {self.name} holds no pictures. {AGAIN}")
            yield cell.get("bytes") or _inside(self.root, cell["path"]).read_bytes()


@dataclass
class LeRobotDataset:
    """The data set in a directory.

    Raises:
        DataError: it cannot be used at all; the text lists everything that is wrong with keys and metadata.
    """

    root: Path
    keys: Keys
    fps: float = field(init=False)
    _info: dict[str, Any] = field(init=False)
    _tables: dict[Path, pa.Table | DataError] = field(init=False, default_factory=dict)
    _times: dict[Path, np.ndarray | DataError] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._info = read_json(self.root / INFO)
        if wrong := list(_problems(self._info, self.keys)):
            raise DataError("\n  ".join(f"{self.root / INFO}: {text}" for text in wrong))
        self.fps = float(self._info["fps"])

    def episodes(self) -> list[Episode]:
        """Return all episodes, those with a problem too, in order.

        Raises:
            DataError: the metadata cannot be read.
        """
        try:
            found = [self._episode(row) for row in self._episode_rows()]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.root}/meta: the table of episodes is damaged ({error}). {AGAIN}") from error
        return sorted(found, key=lambda episode: episode.number)

    @property
    def _old(self) -> bool:
        return self._info["codebase_version"] != "v3.0"

    def _episode_rows(self) -> list[dict[str, Any]]:
        """Return what the metadata say of each episode: number, length, and in which files it lies."""
        if self._old:
            return read_json_lines(self.root / "meta/episodes.jsonl", ("episode_index", "length"))
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise DataError(f"{self.root}/meta/episodes: holds no table of the episodes. {AGAIN}")
        rows: list[dict[str, Any]] = []
        for file in files:
            table = read_table(file)
            kept = [name for name in table.column_names if not name.startswith("stats/")]
            if lacking := {"episode_index", "length", "data/chunk_index", "data/file_index"} - {*kept}:
                raise DataError(f"{file}: lacks the column {', '.join(sorted(lacking))}. {AGAIN}")
            rows += table.select(kept).to_pylist()
        return rows

    @cached_property
    def _tasks(self) -> dict[Any, str]:
        if self._old:
            found = read_json_lines(self.root / "meta/tasks.jsonl", ("task_index", "task"))
            return {row["task_index"]: str(row["task"]) for row in found}
        file = self.root / "meta/tasks.parquet"
        table = read_table(file)
        text = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        if "task_index" not in table.column_names or len(text) != 1:
            raise DataError(f"{file}: has the columns {table.column_names}, not task_index and a text. {AGAIN}")
        return dict(zip(table["task_index"].to_pylist(), table[text[0]].to_pylist(), strict=True))

    @property
    def _told_by(self) -> str | None:
        """The column that tells the instruction."""
        told = self.keys.instruction
        return "task_index" if told == TASK else None if told.startswith(naming.LITERAL) else told

    def _episode(self, row: Mapping[str, Any]) -> Episode:
        number, length = int(row["episode_index"]), int(row["length"])
        file = self._path("data_path", row)
        first, instruction, problems = self._find(file, number, length)
        clips = {}
        if not problems:  # or `length` may be any number
            for key in dict.fromkeys(self.keys.cameras.values()):
                clips[key], wrong = self._clip(key, row, length)
                problems += wrong
        text = "; ".join(problems) or None
        return Episode(self.root, number, file, first, length, instruction, self.fps, clips, text)

    def _find(self, file: Path, number: int, length: int) -> tuple[int, str, list[str]]:
        """Return an episode's first row in its table, its instruction, and what is wrong."""
        if file not in self._tables:
            self._tables[file] = self._read(file)
        table = self._tables[file]
        if isinstance(table, DataError):
            return 0, "", [str(table)]
        at = np.flatnonzero(table["episode_index"].to_numpy() == number)
        if not length or len(at) != length or at[-1] - at[0] + 1 != length:
            return 0, "", [f"has {len(at)} rows in {file.name}, but its length in meta/episodes is {length}"]
        rows = table.slice(int(at[0]), length)
        instruction, wrong = self._instruction(rows)
        return int(at[0]), instruction, [*wrong, *self._clock(rows["timestamp"].to_numpy())]

    def _read(self, file: Path) -> pa.Table | DataError:
        """Return the columns that tell where episodes lie."""
        columns = [name for name in ("episode_index", "timestamp", self._told_by) if name]
        try:
            table = read_table(file, columns)
        except DataError as error:
            return error
        if lacking := {*columns} - {*table.column_names}:
            return DataError(f"{file}: lacks the column {', '.join(sorted(lacking))}. {AGAIN}")
        return table

    def _instruction(self, rows: pa.Table) -> tuple[str, list[str]]:
        """Return the instruction of an episode's rows, and what is wrong with it."""
        column = self._told_by
        if column is None:
            return self.keys.instruction.removeprefix(naming.LITERAL), []
        values = rows[column].unique().to_pylist()
        if len(values) > 1:
            few = ", ".join(str(value) for value in values[:3])
            return "", [f"has several instructions ({column} {few}); an episode takes one. Split it"]
        text = self._tasks.get(values[0]) if column == "task_index" else values[0]
        return (str(text), []) if text else ("", [f"{column} is {values[0]!r}, for which there is no text"])

    def _clock(self, seconds: np.ndarray) -> list[str]:
        """Return what is wrong with the times of an episode's rows."""
        if np.abs(seconds - np.arange(len(seconds)) / self.fps).max() <= TOLERANCE / self.fps:
            return []
        apart = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
        return [
            f"its timestamps begin at {seconds[0]:.3f} s and are {apart:.4f} s apart, but fps in {INFO} is "
            f"{self.fps:g}, which is {1 / self.fps:.4f} s. Put one of the two right"
        ]

    def _clip(self, key: str, row: Mapping[str, Any], length: int) -> tuple[Clip, list[str]]:
        """Return where a camera's frames lie, and what of them is missing."""
        if self._info["features"][key]["dtype"] == "image":
            return Clip(None), []
        file = self._path("video_path", row, key)
        start = row.get(f"videos/{key}/from_timestamp", 0.0 if self._old else None)
        if start is None:  # one file holds many episodes: 0 would give it another one's frames
            return Clip(file), [f"the table of episodes lacks videos/{key}/from_timestamp: where in {file} it begins"]
        start = float(start)
        if file not in self._times:
            try:
                self._times[file] = frame_times(file)
            except DataError as error:
                self._times[file] = error
        times = self._times[file]
        if isinstance(times, DataError):
            return Clip(file, start), [str(times)]
        wanted, near = start + np.arange(length) / self.fps, TOLERANCE / self.fps
        there = np.searchsorted(times, wanted + near, "right") > np.searchsorted(times, wanted - near)
        if there.all():
            return Clip(file, start), []
        end = f"its last frame is at {times[-1]:.3f} s" if len(times) else "it has none"
        return Clip(file, start), [
            f"{file.relative_to(self.root)} has {int(there.sum())} of the {length} frames that its table has rows for, "
            f"from {start:.3f} s on at {self.fps:g} frames per second; {end}"
        ]

    def _path(self, template: str, row: Mapping[str, Any], key: str | None = None) -> Path:
        number = int(row["episode_index"])
        place = f"videos/{key}" if key else "data"
        values = {
            "episode_index": number,
            "episode_chunk": number // int(self._info.get("chunks_size") or 1000),
            "chunk_index": row.get(f"{place}/chunk_index"),
            "file_index": row.get(f"{place}/file_index"),
            "video_key": key,
        }
        try:
            return _inside(self.root, _filled(self._info[template], values))
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{self.root / INFO}: {template} makes no path ({error}). {AGAIN}") from error


def _problems(info: Mapping[str, Any], keys: Keys) -> Iterator[str]:
    """Yield what is wrong with info.json, or with the keys that are asked for."""
    if (version := info.get("codebase_version")) not in VERSIONS:
        yield f"codebase_version is {version!r}; {', '.join(VERSIONS)} are read. Convert it with LeRobot's scripts"
    fps = info.get("fps")
    if not isinstance(fps, int | float) or not math.isfinite(fps) or not 0 < fps <= MAX_FPS:
        yield f"fps is {fps!r}; it must be frames per second"
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        yield f"features is no mapping. {AGAIN}"
        return
    shown = {key: f"{f.get('dtype')} {f.get('shape')}" for key, f in features.items() if key not in COUNTING}
    lacking = False
    for wanted, picture in ((naming.pictures(keys), True), (naming.numbers(keys), False)):
        for setting, key in wanted.items():
            if key not in features:
                lacking = True
                yield naming.missing(setting, key, shown)
            elif not _fits(features[key], picture):
                what = "a video or images" if picture else "a vector of numbers"
                yield f"{key} is {shown[key]}, but {setting} takes {what}"
    told = keys.instruction
    if told != TASK and not told.startswith(naming.LITERAL) and told not in features:
        lacking = True
        yield naming.missing("demos.keys.instruction", told, (TASK, *shown))
    if lacking:
        yield naming.inventory(shown)


def _fits(feature: Mapping[str, Any], picture: bool) -> bool:
    kind, shape = str(feature.get("dtype")), feature.get("shape", ())
    if picture:
        return kind in ("video", "image")
    return kind.startswith(("float", "int", "uint", "bool")) and isinstance(shape, list | tuple) and len(shape) <= 1


def _picture(content: bytes) -> np.ndarray:
    with opened(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _filled(template: Any, values: Mapping[str, Any]) -> str:
    """Return a path with its placeholders filled in: those of LeRobot alone, of bounded width.

    Raises:
        ValueError, TypeError: other placeholders, or values that do not fit.
    """
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise ValueError(f"it is no text of up to {MAX_TEMPLATE} characters")
    if odd := re.search(r"[{}].*", PLACEHOLDER.sub("", template), re.DOTALL):
        raise ValueError(f"{odd[0][:60]!r} is none of LeRobot's placeholders")
    return PLACEHOLDER.sub(lambda found: format(values[found[1]], found[2] or ""), template)


def _inside(root: Path, name: str) -> Path:
    """Return a path of the data set. Raises ValueError for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of {root}")
    return root / path
