"""What is written as a LeRobotDataset: read by this project's own reader, and, where there is one, by LeRobot."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.data import export
from pipeline.data.own import DataSet, read
from pipeline.errors import DataError
from pipeline.libero.demos.layout import demo_file
from pipeline.libero.demos.write import write_demos
from pipeline.libero.settings import Keys
from pipeline.libero.suites import Task, tasks
from stages import dataset
from tests import base
from tests.data import make
from tests.libero.synthetic import SIM, make_episode

SUITE = "libero_spatial"
LENGTHS = (9, 14, 11)
KEYS = Keys(
    {"front": "observation.images.image", "wrist": "observation.images.image2"},
    {"hand": "observation.state"},
    "action",
    "task",
)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of two tasks, with pictures that a codec can keep."""
    root = tmp_path_factory.mktemp("demos")
    for task in tasks(SUITE, [0, 3]):
        episodes = [make_episode(length, task.id + i, size=32) for i, length in enumerate(LENGTHS)]
        for episode in episodes:
            for camera, frames in episode.images.items():
                ramp = np.linspace(0, 100, 32)[:, None, None] + np.arange(len(frames))[:, None, None, None] * 5
                frames[:] = ramp + np.linspace(0, 40, 32)[:, None] + (30 if camera == "agentview" else 0)
        write_demos(demo_file(root, task), task, episodes, SIM)
    return root


def write(demos: Path, folder: Path, *options: str) -> Path:
    tree = base.tree()
    tree["data"]["tasks"] = {SUITE: [0, 3]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    where = ["--params", str(folder / "params.yaml"), "--demos", str(demos)]
    dataset.main([SUITE, *where, "--export", "lerobot", str(folder / "out"), *options])
    return folder / "out"


def originals(demos: Path, task: Task) -> list[dict[str, np.ndarray]]:
    with h5py.File(demo_file(demos, task)) as file:
        groups = [file[f"data/demo_{i}"] for i in range(len(LENGTHS))]
        return [
            {
                "front": group["obs/agentview_rgb"][:-1][:, ::-1, ::-1],
                "wrist": group["obs/eye_in_hand_rgb"][:-1][:, ::-1, ::-1],
                "hand": np.concatenate([group["obs/ee_states"][:-1], group["obs/gripper_states"][:-1]], 1),
                "action": group["expert_actions"][1:],
            }
            for group in groups
        ]


@pytest.mark.parametrize("megabytes", [200, 0], ids=["one file", "a file for each episode"])
def test_what_is_written_is_read_again(
    megabytes: int, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "VIDEO_FILE_MB", megabytes)
    monkeypatch.setattr(export, "FILES_PER_CHUNK", 4)
    out = write(demos, tmp_path)
    assert "6 episodes, 62 frames" in capsys.readouterr().out
    assert len(list(out.glob("videos/*/*/*.mp4"))) == (2 if megabytes else 12)
    found, left_out = DataSet("own", out, KEYS).scan()
    assert not left_out
    for k, task in enumerate(tasks(SUITE, [0, 3])):
        for demo, wanted in zip(found[3 * k : 3 * k + 3], originals(demos, task), strict=True):
            rows = read(demo, ("front", "wrist"))
            assert demo.task.language == task.language
            for name in ("hand", "action"):
                np.testing.assert_array_equal(rows[name], wanted[name].astype(np.float32))
            for camera in ("front", "wrist"):
                error = np.abs(rows["images"][camera].astype(int) - wanted[camera])
                assert error.mean() < 3 and error.max() < 15


def test_the_actions_are_those_that_training_takes(demos: Path, tmp_path: Path) -> None:
    out = write(demos, tmp_path, "--set", "train_flow.action=action")
    (demo, *_), _ = DataSet("own", out, KEYS).scan()
    with h5py.File(demo_file(demos, tasks(SUITE, [0])[0])) as file:
        executed = file["data/demo_0/actions"][1:]
    np.testing.assert_array_equal(read(demo, ("front",))["action"], executed.astype(np.float32))


def test_observations_recorded_in_the_other_order_are_refused(demos: Path, tmp_path: Path) -> None:
    """Or each row would be paired with another one's action."""
    shutil.copytree(demos, tmp_path / "demos")
    for task in tasks(SUITE, [0, 3]):
        with h5py.File(demo_file(tmp_path / "demos", task), "r+") as file:
            for demo in file["data"].values():  # as LIBERO's order is not: before the action
                demo["states"][:, 1:8] = demo["obs/joint_states"][:]
    with pytest.raises(DataError, match=r"were recorded before their actions.*Set embed\.obs_shift: 0"):
        write(tmp_path / "demos", tmp_path)
    assert not (tmp_path / "out").exists()
    write(tmp_path / "demos", tmp_path, "--set", "embed.obs_shift=0")


def test_metadata_tell_what_the_files_hold(demos: Path, tmp_path: Path) -> None:
    out = write(demos, tmp_path)
    info, stats = (json.loads((out / f"meta/{name}.json").read_text()) for name in ("info", "stats"))
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (20, 6, 62, 2)
    assert info["features"]["observation.state"]["shape"] == [8] and len(info["features"]["action"]["names"]) == 7
    rows = [wanted for task in tasks(SUITE, [0, 3]) for wanted in originals(demos, task)]
    actions = np.concatenate([wanted["action"] for wanted in rows])
    pictures = np.concatenate([wanted["front"] for wanted in rows]) / 255
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["q10"], np.quantile(actions, 0.1, axis=0), rtol=1e-4, atol=1e-6)
    of_pictures = stats["observation.images.image"]
    assert np.shape(of_pictures["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(of_pictures["mean"]), pictures.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(of_pictures["std"]), pictures.std((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(of_pictures["q50"]), np.median(pictures, (0, 1, 2)), atol=1 / 255)
    assert np.ravel(of_pictures["max"]).tolist() == pictures.max((0, 1, 2)).tolist()
    episodes = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [entry["length"] for entry in episodes] == [8, 13, 10, 8, 13, 10]
    assert episodes[1]["videos/observation.images.image/from_timestamp"] == pytest.approx(8 / 20)
    assert [entry["dataset_from_index"] for entry in episodes] == [0, 8, 21, 31, 39, 52]


def test_nothing_is_replaced_and_nothing_half_written(demos: Path, tmp_path: Path) -> None:
    write(demos, tmp_path)
    with pytest.raises(DataError, match="out: is there already"):
        write(demos, tmp_path)
    take = make.TAKES[0]
    whole = export.Recording("go", {"a": take.frames}, {"action": take.arrays["action"]})
    for wrong, message in (
        (export.Recording("go", {"a": take.frames[:, :40]}, whole.signals), "the first one"),
        (export.Recording("go", {"a": take.frames[:5]}, whole.signals), "arrays of the lengths"),
    ):
        with pytest.raises(DataError, match=message):
            export.export(tmp_path / "new", [whole, wrong], 10, "arm", {"action": "abcdef"})
    odd = export.Recording("go", {"a": take.frames[:, :, :33]}, whole.signals)
    with pytest.raises(DataError, match=r"H\.264 takes an even height and width"):
        export.export(tmp_path / "new", [odd], 10, "arm", {"action": "abcdef"})
    with pytest.raises(DataError, match="no episode to write"):
        export.export(tmp_path / "new", [], 10, "arm", {})
    assert not (tmp_path / "new").exists()


SIDE = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("local/written", root=sys.argv[1], video_backend="pyav")
rows = [data[i] for i in range(len(data))]
keys = ("observation.state", "action", "observation.images.image", "observation.images.image2")
np.savez(sys.argv[2], **{key: np.stack([row[key].numpy() for row in rows]) for key in keys})
"""


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
def test_lerobot_itself_reads_it(demos: Path, tmp_path: Path, lerobot_python: Path) -> None:
    out = write(demos, tmp_path)
    command = [str(lerobot_python), "-c", SIDE, str(out), str(tmp_path / "rows.npz")]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=500)
    rows = np.load(tmp_path / "rows.npz")
    wanted = [each for task in tasks(SUITE, [0, 3]) for each in originals(demos, task)]
    for key, name in (("observation.state", "hand"), ("action", "action")):
        np.testing.assert_array_equal(rows[key], np.concatenate([w[name] for w in wanted]).astype(np.float32))
    for key, name in (("observation.images.image", "front"), ("observation.images.image2", "wrist")):
        frames = 255 * rows[key].transpose(0, 2, 3, 1)
        assert np.abs(frames - np.concatenate([w[name] for w in wanted])).mean() < 3
