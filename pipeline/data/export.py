"""Write a LeRobotDataset of version 3.0: tables in Parquet, frames as H.264, many episodes in one file."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.statistics import histogram, of_pictures, of_rows
from pipeline.errors import DataError
from pipeline.files import publish_directory

VERSION = "v3.0"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
FILES_PER_CHUNK = 1000
VIDEO_FILE_MB, DATA_FILE_MB = 200, 100
"""LeRobot's sizes; a new file is begun after the episode that passes VIDEO_FILE_MB."""
ENCODING = {"crf": "18", "preset": "fast", "g": "2", "bf": "0"}
"""A keyframe at every other frame, as LeRobot has it: frames are read in any order."""
COUNTERS = ("frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class Recording:
    """One episode of T steps.

    Attributes:
        task: its instruction.
        images: key -> (T, H, W, 3) uint8, H and W even.
        signals: key -> (T, k) float32.
    """

    task: str
    images: Mapping[str, np.ndarray]
    signals: Mapping[str, np.ndarray]


def export(
    out: Path, recordings: Iterable[Recording], fps: int, robot: str, names: Mapping[str, Sequence[str]]
) -> tuple[int, int]:
    """Write the data set to the directory `out`, whole or not at all; return how many episodes and frames it has.

    Takes one episode at a time into memory.

    Args:
        out: not there yet, or empty.
        recordings: with the same keys, sizes and widths.
        names: of each component of a signal, by its key.

    Raises:
        DataError: `out` is not empty, there are no recordings, or they are unlike each other.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already. Name a new directory, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _Writer(partial, fps) as writer:
        for recording in recordings:
            writer.add(recording)
    if not writer.episodes:
        raise DataError(f"{out}: there is no episode to write")
    writer.finish(robot, names)
    publish_directory(partial, out)
    return len(writer.episodes), writer.frames


class _Writer:
    """Appends episodes to files; `finish` writes the metadata."""

    def __init__(self, root: Path, fps: int) -> None:
        self._root, self._fps = root, fps
        self.episodes: list[dict[str, Any]] = []
        self.frames = 0
        self._tasks: dict[str, int] = {}
        self._file = 0
        self._table: pq.ParquetWriter | None = None
        self._videos: dict[str, _Video] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._rows: dict[str, list[np.ndarray]] = {}

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, recording: Recording) -> None:
        """Append one episode."""
        length = self._require_alike(recording)
        columns = self._columns(recording, length)
        place = {"chunk_index": self._file // FILES_PER_CHUNK, "file_index": self._file % FILES_PER_CHUNK}
        entry: dict[str, Any] = {
            "episode_index": len(self.episodes),
            "tasks": [recording.task],
            "length": length,
            **{f"data/{name}": value for name, value in place.items()},
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + length,
        }
        for key, frames in recording.images.items():
            if key not in self._videos:
                file = self._root / f"videos/{key}" / f"{FILE.format(**place)}.mp4"
                self._videos[key] = _Video(file, self._fps, *frames.shape[1:3])
            start = self._videos[key].frames
            self._videos[key].add(frames)
            entry |= {f"videos/{key}/{name}": value for name, value in place.items()}
            entry |= {f"videos/{key}/from_timestamp": start / self._fps}
            entry |= {f"videos/{key}/to_timestamp": (start + length) / self._fps}
            counts = histogram(frames)
            self._counts[key] = self._counts.get(key, 0) + counts
            entry |= _flat(key, of_pictures(counts, length))
        self._append(columns, place)
        for key, rows in columns.items():
            self._rows.setdefault(key, []).append(rows)
            entry |= _flat(key, of_rows(rows.reshape(length, -1)))
        self.episodes.append(entry | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self.frames += length
        if any(video.bytes > VIDEO_FILE_MB * 2**20 for video in self._videos.values()):
            self._close()
            self._file += 1

    def finish(self, robot: str, names: Mapping[str, Sequence[str]]) -> None:
        """Write what describes the files."""
        meta = self._root / "meta"
        folder = meta / "episodes/chunk-000"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.episodes), folder / "file-000.parquet")
        pq.write_table(_tasks_table(list(self._tasks)), meta / "tasks.parquet")
        stats = {key: of_rows(np.concatenate(rows).reshape(self.frames, -1)) for key, rows in self._rows.items()}
        stats |= {key: of_pictures(counts, self.frames) for key, counts in self._counts.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4) + "\n")
        (meta / "info.json").write_text(json.dumps(self._info(robot, names), indent=4) + "\n")

    def _info(self, robot: str, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, shape in self._shapes.items():
            if key in self._counts:
                features[key] = _video_feature(shape, self._fps)
            else:
                features[key] = {"dtype": "float32", "shape": list(shape), "names": list(names[key])}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in COUNTERS}
        return {
            "codebase_version": VERSION,
            "robot_type": robot,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": f"data/{FILE}.parquet",
            "video_path": f"videos/{{video_key}}/{FILE}.mp4",
            "features": features,
        }

    def _require_alike(self, recording: Recording) -> int:
        """Return the episode's length. Raises DataError if its arrays do not fit each other, or earlier episodes."""
        arrays = {**recording.images, **recording.signals}
        shapes = {key: values.shape[1:] for key, values in arrays.items()}
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise DataError(f"episode {len(self.episodes)} has {shapes}, the first one {self._shapes}")
        if odd := [key for key in recording.images if shapes[key][0] % 2 or shapes[key][1] % 2]:
            raise DataError(f"{odd[0]}: frames of {shapes[odd[0]]}; H.264 takes an even height and width")
        lengths = {key: len(values) for key, values in arrays.items()}
        if len({*lengths.values()}) != 1 or not min(lengths.values()):
            raise DataError(f"episode {len(self.episodes)} has arrays of the lengths {lengths}")
        return next(iter(lengths.values()))

    def _columns(self, recording: Recording, length: int) -> dict[str, np.ndarray]:
        steps = np.arange(length)
        task = self._tasks.setdefault(recording.task, len(self._tasks))
        return {
            **{key: np.ascontiguousarray(rows, np.float32) for key, rows in recording.signals.items()},
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, len(self.episodes)),
            "index": self.frames + steps,
            "task_index": np.full(length, task),
        }

    def _append(self, columns: Mapping[str, np.ndarray], place: Mapping[str, int]) -> None:
        arrays = {key: _column(rows) for key, rows in columns.items()}
        table = pa.table(arrays)
        if self._table is None:
            file = self._root / "data" / f"{FILE.format(**place)}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            self._table = pq.ParquetWriter(file, table.schema)
        self._table.write_table(table)  # a row group of its own

    def _close(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos = {}
        if self._table is not None:
            self._table.close()
            self._table = None


class _Video:
    """One mp4, frame after frame."""

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._container = av.open(str(path), "w", format="mp4")
        self._stream: Any = self._container.add_stream("libx264", rate=fps, options=ENCODING)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = 1  # the same bytes on any machine
        self.frames = 0

    @property
    def bytes(self) -> int:
        """Written so far."""
        return self._path.stat().st_size

    def add(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3)."""
        for frame in frames:
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                self._container.mux(packet)
        self.frames += len(frames)

    def close(self) -> None:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()


def _column(rows: np.ndarray) -> pa.Array:
    if rows.ndim == 1 or rows.shape[1] == 1:  # LeRobot has one number as such, not as a list
        return pa.array(rows.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _flat(key: str, stats: Mapping[str, Any]) -> dict[str, Any]:
    return {f"stats/{key}/{name}": values for name, values in stats.items()}


def _video_feature(shape: Sequence[int], fps: int) -> dict[str, Any]:
    height, width, channels = shape
    info = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p"}
    info |= {"fps": fps, "channels": channels}
    told = {f"video.{name}": value for name, value in info.items()}
    return {
        "dtype": "video",
        "shape": [height, width, channels],
        "names": ["height", "width", "channels"],
        "info": {**told, "has_audio": False, "is_depth_map": False},
    }


def _tasks_table(tasks: Sequence[str]) -> pa.Table:
    """Return the table of tasks: for pandas the text is the index."""
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in kinds
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
