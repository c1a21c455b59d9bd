"""Small data sets of another robot: 6 joints, a gripper, one camera of 64 x 48. Written without this project's code."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.libero.settings import Keys

FPS = 10
CAMERA, STATE, GRIP = "observation.images.front", "observation.state", "observation.grip"
KEYS = Keys({"front": CAMERA}, {"joints": STATE, "grip": GRIP}, "action", "task")
HDF5_KEYS = Keys({"front": "obs/front"}, {"joints": "obs/joints", "grip": "obs/grip"}, "actions", "instruction")
TASKS = ("pick up the cube", "push the cube")
HEIGHT, WIDTH = 48, 64


@dataclass
class Take:
    """One episode; `grey(t)` is the brightness in the middle of frame t, and its left edge is red."""

    seed: int
    length: int
    task: str = TASKS[0]
    arrays: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n = self.length
        self.arrays = {
            "joints": (40 * rng.normal(size=(n, 6))).astype(np.float32),
            "grip": rng.uniform(0, 1, (n, 1)).astype(np.float32),
            "action": (40 * rng.normal(size=(n, 6))).astype(np.float32),
        }

    def grey(self, t: int) -> int:
        return 40 + (37 * self.seed + 11 * t) % 180

    @property
    def frames(self) -> np.ndarray:
        frames = np.zeros((self.length, HEIGHT, WIDTH, 3), np.uint8)
        for t in range(self.length):
            frames[t] = self.grey(t)
        frames[:, :, :8] = (255, 0, 0)  # outside of the square in the middle
        frames[:, : HEIGHT // 4, 16:48] = (0, 0, 200)  # at the top
        return frames


TAKES = (Take(0, 20), Take(1, 15, TASKS[1]), Take(2, 31))


def video(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write H.264 with B-frames and keyframes far apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def table(takes: Sequence[Take], first: int = 0, images: bool = False, fps: int = FPS) -> pa.Table:
    """Return the rows of episodes `first`, `first` + 1..."""
    rows: dict[str, Any] = {}
    for key, name in ((STATE, "joints"), (GRIP, "grip"), ("action", "action")):
        values = np.concatenate([take.arrays[name] for take in takes])
        flat = pa.array(values.reshape(-1))
        rows[key] = flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    steps = [np.arange(take.length) for take in takes]
    rows["timestamp"] = pa.array(np.concatenate(steps) / fps, pa.float32())
    rows["frame_index"] = pa.array(np.concatenate(steps))
    rows["episode_index"] = pa.array(np.repeat(first + np.arange(len(takes)), [t.length for t in takes]))
    rows["task_index"] = pa.array(np.concatenate([np.full(t.length, TASKS.index(t.task)) for t in takes]))
    if images:
        cells = [{"bytes": png(frame), "path": None} for take in takes for frame in take.frames]
        rows[CAMERA] = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(rows)


def png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "png")
    return out.getvalue()


def info(version: str, images: bool = False) -> dict[str, Any]:
    def numbers(width: int) -> dict[str, Any]:
        return {"dtype": "float32", "shape": [width], "names": None}

    pattern = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    old = version != "v3.0"
    return {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        if old
        else f"data/{pattern}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if old
        else f"videos/{{video_key}}/{pattern}.mp4",
        "features": {
            CAMERA: {"dtype": "image" if images else "video", "shape": [HEIGHT, WIDTH, 3]},
            **{STATE: numbers(6), GRIP: numbers(1), "action": numbers(6), "timestamp": numbers(1)},
        },
    }


def write_v3(root: Path, takes: Sequence[Take] = TAKES, images: bool = False) -> Path:
    """Write version 3.0: all episodes in one table, and in one video. Return the directory."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info("v3.0", images)))
    tasks = {"task_index": list(range(len(TASKS))), "task": list(TASKS)}
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    pq.write_table(table(takes, images=images), root / "data/chunk-000/file-000.parquet", row_group_size=25)
    starts = np.cumsum([0, *(take.length for take in takes)])
    rows = [
        {
            "episode_index": i,
            "tasks": [take.task],
            "length": take.length,
            **{"data/chunk_index": 0, "data/file_index": 0},
            **{f"videos/{CAMERA}/{name}": 0 for name in ("chunk_index", "file_index") if not images},
            **({} if images else {f"videos/{CAMERA}/from_timestamp": float(starts[i]) / FPS}),
        }
        for i, take in enumerate(takes)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    if not images:
        video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", np.concatenate([take.frames for take in takes]))
    return root


def write_v2(root: Path, takes: Sequence[Take] = TAKES) -> Path:
    """Write version 2.1: a table and a video for each episode. Return the directory."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info("v2.1")))
    episodes = [{"episode_index": i, "tasks": [take.task], "length": take.length} for i, take in enumerate(takes)]
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    for name, lines in (("episodes", episodes), ("tasks", tasks)):
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i, take in enumerate(takes):
        pq.write_table(table([take], i), root / f"data/chunk-000/episode_{i:06d}.parquet")
        video(root / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4", take.frames)
    return root


def write_hdf5(root: Path, takes: Sequence[Take] = TAKES, name: str = "robot.hdf5") -> Path:
    """Write a file as robomimic does. Return the directory."""
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / name, "w") as file:
        for i, take in enumerate(takes):
            group = file.create_group(f"data/demo_{i}")
            group.attrs["instruction"] = take.task
            group["actions"] = take.arrays["action"].astype(np.float64)
            for key in ("joints", "grip"):
                group[f"obs/{key}"] = take.arrays[key]
            group.create_dataset("obs/front", data=take.frames, compression="gzip")
    return root


WRITERS = {
    "v3": (write_v3, KEYS),
    "v2.1": (write_v2, KEYS),
    "v3 images": (lambda root: write_v3(root, images=True), KEYS),
    "hdf5": (write_hdf5, HDF5_KEYS),
}
