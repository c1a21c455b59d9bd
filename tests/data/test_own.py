"""Data sets of another robot, in each format: what is read is what was written, and damage is named."""

import io
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.own import DataSet, Demo, digest, read, square
from pipeline.errors import DataError
from pipeline.libero.settings import Keys
from tests.data import make


def scan(root: Path, keys: Keys = make.KEYS) -> tuple[list[Demo], dict[str | None, str]]:
    """Return the usable demonstrations, and the reasons of the others."""
    demos, left_out = DataSet("own", root, keys).scan()
    return demos, {entry.demo: entry.reason for entry in left_out}


@pytest.mark.parametrize("kind", make.WRITERS)
def test_rows_frames_and_instructions_are_those_written(kind: str, tmp_path: Path) -> None:
    write, keys = make.WRITERS[kind]
    data = DataSet("own", write(tmp_path / "data"), keys)
    demos, left_out = data.scan()
    assert not left_out and len({demo.source for demo in demos}) == len(make.TAKES)
    assert [task.language for task in data.tasks()] == list(make.TASKS)
    for demo, take in zip(demos, make.TAKES, strict=True):
        demo = pickle.loads(pickle.dumps(demo))  # noqa: S301 (as it goes to a worker)
        assert (demo.task.language, demo.length, demo.number) == (take.task, take.length, take.seed)
        assert (dict(demo.widths), demo.frame_size) == ({"joints": 6, "grip": 1, "action": 6}, 48)
        for start, stop in ((0, None), (7, 13), (take.length - 1, take.length)):
            rows = read(demo, ("front",), start, stop)
            for name in ("joints", "grip", "action"):
                np.testing.assert_array_equal(rows[name], take.arrays[name][start:stop])
                assert rows[name].dtype == np.float32
            frames, wanted = rows["images"]["front"], take.frames[start:stop, :, 8:56]
            assert frames.shape == wanted.shape and frames.dtype == np.uint8
            near = 6 if "v" in kind and "images" not in kind else 0
            middle = np.abs(frames[:, 20:40, 12:36].astype(int) - wanted[:, 20:40, 12:36])
            assert middle.max() <= near, "each frame is that of its row"
            assert frames[:, 4, 24, 2].min() > 150 and frames[:, 4, 24, 0].max() < 60, "upright"


def test_the_square_is_in_the_middle() -> None:
    frames = np.arange(2 * 3 * 6 * 3, dtype=np.uint8).reshape(2, 3, 6, 3)
    np.testing.assert_array_equal(square(frames), frames[:, :, 1:4])
    np.testing.assert_array_equal(square(frames.transpose(0, 2, 1, 3)), frames.transpose(0, 2, 1, 3)[:, 1:4])


@pytest.mark.parametrize("kind", make.WRITERS)
def test_a_digest_is_of_the_data_and_not_of_their_place(kind: str, tmp_path: Path) -> None:
    write, keys = make.WRITERS[kind]
    here, there = (scan(write(tmp_path / name), keys)[0] for name in ("a", "b/c"))
    assert [digest(demo) for demo in here] == [digest(demo) for demo in there]
    assert len({digest(demo) for demo in here}) == len(here)


def edit_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_table(root: Path, name: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = (table := pq.read_table(root / name)).to_pylist()
    change(rows)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), root / name)


def set_length(root: Path, length: int) -> None:
    """Say of each episode that it has so many steps."""

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["length"] = length

    edit_table(root, "meta/episodes/chunk-000/file-000.parquet", change)


def billions() -> pa.Table:
    """Return rows that take next to no room in a file."""
    zeros = np.zeros(10_000_001, np.int8)
    return pa.table({"episode_index": zeros, "timestamp": zeros, "task_index": zeros})


def write_playlist(path: Path) -> None:
    """Write, in place of a video, a text that FFmpeg takes for the order to play that video."""
    path.rename(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode(None)])


def truncate(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_all_keys_that_are_wrong_are_listed_at_once_with_what_is_there(tmp_path: Path) -> None:
    make.write_v3(tmp_path / "data")
    keys = Keys({"front": "observation.images.frnt"}, {"joints": make.CAMERA, "force": "force"}, "actoin", "text")
    edit_info(tmp_path / "data", fps=0)
    with pytest.raises(DataError) as caught:
        scan(tmp_path / "data", keys)
    text = str(caught.value)
    assert text.count("meta/info.json: ") == 7
    for part in (
        "fps is 0",
        "no 'observation.images.frnt', which demos.keys.cameras.front names. Did you mean 'observation.images.front'?",
        "observation.images.front is video [48, 64, 3], but demos.keys.state.joints takes a vector of numbers",
        "no 'force', which demos.keys.state.force names",
        "no 'actoin', which demos.keys.action names. Did you mean 'action'?",
        "no 'text', which demos.keys.instruction names. Known: action, ",
        "It has action (float32 [6]), observation.grip (float32 [1]), observation.images.front (video [48, 64, 3])",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "meta/info.json").write_text("{"), r"info\.json: cannot be read"),
        (lambda root: edit_info(root, codebase_version="v1.6"), "codebase_version is 'v1.6'; v3.0, v2.1"),
        (lambda root: edit_info(root, features=3), "features is no mapping"),
        (lambda root: edit_info(root, data_path="../{chunk_index}"), "data_path makes no path .*leads out of"),
        (lambda root: edit_info(root, video_path="{nothing}"), "video_path makes no path"),
        (
            lambda root: edit_info(root, data_path="data/{episode_index:099999999d}.parquet"),
            r"data_path makes no path \('\{episode_index:099999999d\}.*is none of LeRobot's placeholders",
        ),
        (lambda root: edit_info(root, data_path="{video_key.__class__}"), "data_path makes no path .*is none of LeRo"),
        (lambda root: edit_info(root, data_path="data/" * 101), "data_path makes no path .*no text of up to 500"),
        (lambda root: edit_info(root, fps=float("nan")), "fps is nan; it must be frames per second"),
        (lambda root: set_length(root, 10**15), r"has 20 rows in file-000\.parquet, but its length .* is 1000000000"),
        (
            lambda root: pq.write_table(billions(), root / "data/chunk-000/file-000.parquet"),
            r"file-000\.parquet: cannot be read as a table \(10,000,001 rows; 10,000,000 are the most",
        ),
        (
            lambda root: write_playlist(root / f"videos/{make.CAMERA}/chunk-000/file-000.mp4"),
            r"file-000\.mp4: cannot be read as a video",
        ),
        (
            lambda root: write_sound(root / f"videos/{make.CAMERA}/chunk-000/file-000.mp4"),
            r"file-000\.mp4: cannot be read as a video \(it holds no video",
        ),
        (lambda root: truncate(root / "meta/episodes/chunk-000/file-000.parquet"), "cannot be read as a table"),
        (lambda root: truncate(root / "meta/tasks.parquet"), r"tasks\.parquet: cannot be read as a table"),
        (
            lambda root: truncate(root / "data/chunk-000/file-000.parquet"),
            r"no demonstration is usable.*\n.*and so 2 more",
        ),
        (
            lambda root: edit_info(root, fps=30),
            r"begin at 0\.000 s and are 0\.1000 s apart, but fps in meta/info\.json is 30, which is 0\.0333 s",
        ),
        (
            lambda root: (root / f"videos/{make.CAMERA}/chunk-000/file-000.mp4").unlink(),
            r"mp4: cannot be read as a video",
        ),
        (
            lambda root: truncate(root / f"videos/{make.CAMERA}/chunk-000/file-000.mp4"),
            r"mp4: cannot be read as a video",
        ),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused(
    change: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make.write_v3(tmp_path / "data")
    change(tmp_path / "data")
    with pytest.raises(DataError, match=f"(?s){message}"):
        scan(tmp_path / "data")


def test_episodes_that_are_damaged_are_left_out_with_their_reasons(tmp_path: Path) -> None:
    root = make.write_v3(tmp_path / "data", (*make.TAKES, make.Take(3, 8), make.Take(4, 9), make.Take(5, 10)))

    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[3]["observation.state"][2] = float("nan")  # of episode 0
        for row in rows[25:30]:
            row["task_index"] = 0  # of episode 1, whose others are 1
        for row in rows[70:74]:
            row["timestamp"] += 0.07  # of episode 3

    def lengthen(rows: list[dict[str, Any]]) -> None:
        rows[4]["length"] = 12

    edit_table(root, "data/chunk-000/file-000.parquet", spoil)
    edit_table(root, "meta/episodes/chunk-000/file-000.parquet", lengthen)
    demos, reasons = scan(root)
    assert [demo.name for demo in demos] == ["episode_000002", "episode_000005"]
    assert reasons["episode_000000"] == "observation.state has values that are not finite"
    assert "several instructions (task_index 1, 0" in reasons["episode_000001"]
    assert "timestamps begin at 0.000 s" in reasons["episode_000003"]
    assert "has 9 rows in file-000.parquet, but its length in meta/episodes is 12" in reasons["episode_000004"]


@pytest.mark.parametrize("whole", [True, False])
def test_an_empty_cell_is_named_with_file_column_and_row(whole: bool, tmp_path: Path) -> None:
    """Without one of its 3 rows of 6 numbers an episode would still make 3 rows, of 4."""
    root = make.write_v3(tmp_path / "data", (make.TAKES[0], make.Take(7, 3)))

    def empty(rows: list[dict[str, Any]]) -> None:
        if whole:
            rows[21][make.STATE] = None
        else:
            rows[21][make.STATE][4] = None

    edit_table(root, "data/chunk-000/file-000.parquet", empty)
    demos, reasons = scan(root)
    assert [demo.number for demo in demos] == [0]
    assert re.search(
        r"file-000\.parquet: observation\.state has an empty cell in row 21\.", reasons["episode_000001"] or ""
    )


@pytest.mark.parametrize("content", ["bomb", "gif", "cut"])
def test_pictures_of_other_formats_or_too_large_are_refused(content: str, tmp_path: Path) -> None:
    root = make.write_v3(tmp_path / "data", images=True)
    out = io.BytesIO()
    if content == "bomb":  # 8 KB
        Image.new("1", (8200, 8200)).save(out, "png")
    else:
        Image.fromarray(make.TAKES[0].frames[0]).save(out, "gif" if content == "gif" else "png")
    cell = {"bytes": out.getvalue() if content != "cut" else out.getvalue()[:-60], "path": None}
    edit_table(root, "data/chunk-000/file-000.parquet", lambda rows: rows[0].update({make.CAMERA: cell}))
    demos, reasons = scan(root)
    assert len(demos) == 2 and "holds no pictures" in reasons["episode_000000"]
    assert ("8200 x 8200 pixels; 67,108,864 are the most" in reasons["episode_000000"]) == (content == "bomb")


def test_an_episode_that_may_be_anywhere_in_its_video_is_left_out(tmp_path: Path) -> None:
    """From 0 s on it would be another one's frames."""
    root, key = make.write_v3(tmp_path / "data"), f"videos/{make.CAMERA}/from_timestamp"
    edit_table(root, "meta/episodes/chunk-000/file-000.parquet", lambda rows: rows[1].update({key: None}))
    demos, reasons = scan(root)
    assert [demo.number for demo in demos] == [0, 2] and reasons.keys() == {"episode_000001"}
    assert f"the table of episodes lacks {key}" in reasons["episode_000001"]


@pytest.mark.parametrize("version", ["v3", "v2.1"])
def test_an_episode_whose_video_is_shorter_than_its_table_is_left_out(version: str, tmp_path: Path) -> None:
    root = make.WRITERS[version][0](tmp_path / "data")
    frames = [take.frames for take in make.TAKES]
    if version == "v3":
        make.video(root / f"videos/{make.CAMERA}/chunk-000/file-000.mp4", np.concatenate(frames)[:-4])
    else:
        make.video(root / f"videos/chunk-000/{make.CAMERA}/episode_000002.mp4", frames[2][:-4])
    demos, reasons = scan(root)
    assert [demo.number for demo in demos] == [0, 1] and reasons.keys() == {"episode_000002"}
    assert "has 27 of the 31 frames that its table has rows for" in reasons["episode_000002"]


def test_a_video_that_is_damaged_inside_is_an_error_where_it_is_read(tmp_path: Path) -> None:
    root = make.write_v2(tmp_path / "data")
    demos, _ = scan(root)
    path = root / f"videos/chunk-000/{make.CAMERA}/episode_000002.mp4"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DataError, match=r"episode_000002\.mp4: cannot be read as a video"):
        read(demos[2], ("front",))
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises(DataError, match=r"episode_000001\.parquet: .* cannot be read"):
        read(demos[1], ())


def test_hdf5_tells_its_instruction_in_many_ways(tmp_path: Path) -> None:
    root = make.write_hdf5(tmp_path / "data")
    with h5py.File(root / "robot.hdf5", "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "stack them"})
        for group in file["data"].values():
            group["text"] = [b"wipe the table"] * 3
    for key, told in (
        ("=pour the tea", "pour the tea"),
        ("problem_info.language_instruction", "stack them"),
        ("text", "wipe the table"),
    ):
        demos, _ = scan(root, replace(make.HDF5_KEYS, instruction=key))
        assert {demo.task.language for demo in demos} == {told}
    with pytest.raises(DataError, match=r"no 'words', which demos\.keys\.instruction names.*'=pick up the cube'"):
        scan(root, replace(make.HDF5_KEYS, instruction="words"))


def test_hdf5_without_words_is_left_out(tmp_path: Path) -> None:
    root = make.write_hdf5(tmp_path)
    with h5py.File(root / "robot.hdf5", "r+") as file:
        for i, words in enumerate((b"", np.array([b"pick it up"]), np.array([], "S1"))):
            file[f"data/demo_{i}"].attrs["told"] = words
    demos, left_out = DataSet("own", root, replace(make.HDF5_KEYS, instruction="told")).scan()
    assert [demo.task.language for demo in demos] == ["pick it up"]
    assert [entry.reason for entry in left_out] == ["its told is empty"] * 2


def test_hdf5_files_may_be_many_and_each_one_demonstration(tmp_path: Path) -> None:
    for i, take in enumerate((*make.TAKES, *make.TAKES, *make.TAKES, *make.TAKES)):
        with h5py.File(make.write_hdf5(tmp_path, (), f"part{i}.h5") / f"part{i}.h5", "w") as file:
            file["action"], file["obs/front"] = take.arrays["action"], take.frames
            file["obs/joints"], file["obs/grip"] = take.arrays["joints"], take.arrays["grip"][:, 0]
    demos, left_out = scan(tmp_path, replace(make.HDF5_KEYS, action="action", instruction="=go"))
    assert not left_out and [demo.number for demo in demos] == list(range(12)), "part2 comes before part10"
    assert demos[10].source == "part10.h5/demo" and demos[10].length == 15
    np.testing.assert_array_equal(read(demos[10], ())["grip"], make.TAKES[1].arrays["grip"])


def test_hdf5_that_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    root = make.write_hdf5(tmp_path)
    for name in ("cut.hdf5", "odd.hdf5"):
        (root / name).write_bytes((root / "robot.hdf5").read_bytes())
    truncate(root / "cut.hdf5")
    with h5py.File(root / "odd.hdf5", "r+") as file:
        for i, (key, values) in enumerate(
            (
                ("obs/joints", np.zeros((20, 7))),
                ("obs/front", np.zeros((15, 48, 64, 3), np.uint8)),
                ("obs/grip", np.zeros((30, 1))),
            )
        ):
            del file[f"data/demo_{i}"][key]
            file[f"data/demo_{i}"][key] = values
    demos, left_out = DataSet("own", root, make.HDF5_KEYS).scan()
    reasons = {(entry.file.name, entry.demo): entry.reason for entry in left_out}
    assert [demo.source for demo in demos] == [f"robot.hdf5/demo_{i}" for i in range(3)]
    assert len(reasons) == 4
    assert "truncated or damaged" in reasons["cut.hdf5", "demo"]
    assert "joints has the size 7, in most it is 6" in reasons["odd.hdf5", "demo_0"]
    assert (
        "obs/grip is float64 (30, 1), but demos.keys.state.grip takes (31, k) numbers" in reasons["odd.hdf5", "demo_2"]
    )
    assert "of obs/front are of one colour each" in reasons["odd.hdf5", "demo_1"]


def test_hdf5_whose_values_lie_elsewhere_is_left_out(tmp_path: Path) -> None:
    root = make.write_hdf5(tmp_path / "set")
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((15, 6))
    for name in ("linked.hdf5", "virtual.hdf5", "external.hdf5"):
        (root / name).write_bytes((root / "robot.hdf5").read_bytes())
        with h5py.File(root / name, "r+") as file:
            demo = file["data/demo_0"]
            del demo["obs/joints"]
            if name == "linked.hdf5":
                demo["obs/joints"] = h5py.ExternalLink(str(secret), "/x")
            elif name == "virtual.hdf5":
                layout = h5py.VirtualLayout((15, 6), float)
                layout[:] = h5py.VirtualSource(str(secret), "x", (15, 6))
                demo.create_virtual_dataset("obs/joints", layout)
            else:
                demo.create_dataset("obs/joints", (15, 6), "<f8", external=[(str(secret), 0, 720)])
    _, left_out = DataSet("own", root, make.HDF5_KEYS).scan()
    reasons = {entry.file.name: entry.reason for entry in left_out}
    assert set(reasons) == {"linked.hdf5", "virtual.hdf5", "external.hdf5"}
    assert all("/data/demo_0/obs/joints lies outside of the file: copy it in" in text for text in reasons.values())


def test_hdf5_that_lacks_keys_says_so_once_with_what_is_there(tmp_path: Path) -> None:
    root = make.write_hdf5(tmp_path)
    keys = replace(make.HDF5_KEYS, cameras={"front": "obs/frnt"}, action="action")
    with pytest.raises(DataError) as caught:
        scan(root, keys)
    text = str(caught.value)
    assert text.count("demos.keys.cameras.front") == 1 and "(and so 2 more)" in text
    assert "no 'obs/frnt', which demos.keys.cameras.front names. Did you mean 'obs/front'?" in text
    assert "no 'action', which demos.keys.action names. Did you mean 'actions'?" in text
    assert "It has actions (float64 (T, 6)), obs/front (uint8 (T, 48, 64, 3))" in text
    with pytest.raises(DataError, match=r"holds no LeRobotDataset \(meta/info.json\) and no file \.hdf5"):
        scan(tmp_path / "none", keys)
