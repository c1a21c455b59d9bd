"""The reader gives rows upright and in order, and says what is wrong with a damaged file."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.libero.demos import layout
from pipeline.libero.demos.defects import no_ops
from pipeline.libero.demos.layout import demo_file
from pipeline.libero.demos.read import digest, read, recorded_with, scan
from pipeline.libero.demos.write import write_demos
from pipeline.libero.depth import depth_picture
from pipeline.libero.suites import Task, tasks
from tests.libero.synthetic import SIM, make_episode


@pytest.fixture
def task() -> Task:
    return tasks("libero_spatial", [3])[0]


@pytest.fixture
def root(tmp_path: Path, task: Task) -> Path:
    """Twelve demos, so that HDF5's own order (0, 1, 10, 11, 2...) differs from the numeric one."""
    write_demos(demo_file(tmp_path, task), task, [make_episode(4 + i, i) for i in range(12)], SIM)
    return tmp_path


def test_scan_counts_in_numeric_order(root: Path, task: Task) -> None:
    demos, quarantine = scan(root, "libero_spatial", [task])
    assert [d.name for d in demos] == [f"demo_{i}" for i in range(12)]
    assert [d.length for d in demos] == [4 + i for i in range(12)]
    assert all(d.optional == ("expert_action", "ee_wrench") and d.task == task for d in demos)
    assert quarantine == []


def test_read_gives_upright_rows_of_the_episode(root: Path, task: Task) -> None:
    demos, _ = scan(root, "libero_spatial", [task])
    episode = make_episode(9, 5)
    rows = read(demos[5], ("agentview", "eye_in_hand"), 2, 6)
    for camera, frames in rows["images"].items():
        np.testing.assert_array_equal(frames, episode.images[camera][2:6])
        assert (frames[:, 0] == (255, 0, 0)).all()
    np.testing.assert_array_equal(rows["joint_pos"], episode.joint_pos[2:6])
    np.testing.assert_array_equal(rows["gripper"], episode.gripper[2:6])
    np.testing.assert_allclose(rows["ee_pose"], episode.ee_pose[2:6], atol=1e-6)
    np.testing.assert_array_equal(rows["action"], episode.actions[2:6].astype(np.float32))
    np.testing.assert_array_equal(rows["expert_action"], episode.expert_actions[2:6].astype(np.float32))
    np.testing.assert_array_equal(rows["ee_wrench"], episode.ee_wrench[2:6])
    assert {name: value.dtype for name, value in rows.items() if name != "images"} == dict.fromkeys(
        ("joint_pos", "ee_pose", "gripper", "action", "expert_action", "ee_wrench"), np.float32
    )
    assert read(demos[5], ())["images"] == {}
    assert len(read(demos[5], ("agentview",))["images"]["agentview"]) == 9


def test_files_as_liberos_own_are_fine(root: Path, task: Task) -> None:
    with h5py.File(demo_file(root, task), "r+") as file:
        for demo in file["data"].values():
            del demo["expert_actions"], demo["obs/ee_wrench"]
    demos, quarantine = scan(root, "libero_spatial", [task])
    assert (len(demos), quarantine) == (12, [])
    assert not {"expert_action", "ee_wrench"} & set(read(demos[0], ("agentview",)))


def test_depth_is_read_as_upright_pictures(tmp_path: Path, task: Task) -> None:
    episodes = [make_episode(4 + i, i, depth=True) for i in range(3)]
    write_demos(demo_file(tmp_path, task), task, episodes, SIM)
    with h5py.File(demo_file(tmp_path, task), "r+") as file:
        stored = file["data/demo_0/obs/eye_in_hand_depth_mm"][()]
        np.testing.assert_array_equal(stored[:, ::-1], episodes[0].depths["eye_in_hand_depth"])  # upside-down, too
        wrong = file["data/demo_1/obs/eye_in_hand_depth_mm"][()].astype(np.float32)
        del file["data/demo_1/obs/eye_in_hand_depth_mm"], file["data/demo_2/obs/eye_in_hand_depth_mm"]
        file["data/demo_1/obs/eye_in_hand_depth_mm"] = wrong
    demos, quarantine = scan(tmp_path, "libero_spatial", [task], ("agentview", "eye_in_hand_depth"))
    assert [q.reason for q in quarantine] == [
        "obs/eye_in_hand_depth_mm is float32 (5, 16, 16, 1), expected uint16 (T, S, S, 1)",
        "lacks obs/eye_in_hand_depth_mm",
    ]
    assert demos[0].frame_size == 16
    pictures = read(demos[0], ("eye_in_hand_depth",), 1, 3)["images"]["eye_in_hand_depth"]
    np.testing.assert_array_equal(pictures, depth_picture(episodes[0].depths["eye_in_hand_depth"][1:3]))
    assert len(scan(tmp_path, "libero_spatial", [task])[0]) == 3, "who asks for no depth misses none"


def replace_data(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.Group], None]:
    def damage(demo: h5py.Group) -> None:
        value = change(demo[name][()])
        del demo[name]
        demo[name] = value

    return damage


def put(value: float, column: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[1, column] = value
        return array

    return change


def drop(name: str) -> Callable[[h5py.Group], None]:
    def damage(demo: h5py.Group) -> None:
        del demo[name]

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop("obs/eye_in_hand_rgb"), "lacks obs/eye_in_hand_rgb"),
        (drop("actions"), "lacks actions"),
        (
            drop("obs"),
            "lacks obs/joint_states, obs/ee_states, obs/gripper_states, .*obs/agentview_rgb, obs/eye_in_hand_rgb",
        ),
        (replace_data("obs/joint_states", lambda a: a[:-1]), "obs/joint_states has 5 rows, but actions has 6"),
        (replace_data("rewards", lambda a: a[:-2]), "rewards has 4 rows, but actions has 6"),
        (replace_data("obs/ee_states", lambda a: a[:, :5]), r"obs/ee_states has shape \(6, 5\)"),
        (replace_data("obs/agentview_rgb", lambda a: a.astype(np.float32)), "obs/agentview_rgb is float32"),
        (replace_data("obs/agentview_rgb", lambda a: a[:, :8]), r"obs/agentview_rgb is uint8 \(6, 8, 16, 3\)"),
        (replace_data("obs/gripper_states", put(np.nan, 0)), "obs/gripper_states has values that are not finite"),
        (replace_data("states", put(np.inf, 3)), "states has values that are not finite"),
        (replace_data("actions", put(1.5, 2)), "actions reaches 1.5"),
        (replace_data("actions", put(0.5, 6)), "gripper command other than"),
        (replace_data("expert_actions", put(-1.01, 0)), "expert_actions reaches 1.01"),
        (replace_data("actions", lambda a: a * 0 - np.eye(7)[6]), "no-op from beginning"),
        (lambda demo: demo.attrs.modify("num_samples", 99), "num_samples is 99, but actions has 6 rows"),
        (lambda demo: demo.attrs.update(num_samples="six"), "num_samples is 'six', which is no number"),
        (replace_data("obs/eye_in_hand_rgb", lambda a: a * 0), "frame 0 of obs/eye_in_hand_rgb is all black"),
        (
            replace_data("obs/agentview_rgb", lambda a: np.concatenate([a[:5], a[5:] * 0 + 99])),
            "frame 5 .* all one colour",
        ),
    ],
)
def test_damage_is_named_and_the_rest_stays(
    root: Path, task: Task, damage: Callable[[h5py.Group], None], reason: str
) -> None:
    path = demo_file(root, task)
    with h5py.File(path, "r+") as file:
        damage(file["data/demo_2"])
    demos, quarantine = scan(root, "libero_spatial", [task])
    assert [d.name for d in demos] == [f"demo_{i}" for i in range(12) if i != 2]
    assert [(q.file, q.demo) for q in quarantine] == [(path, "demo_2")]
    assert re.search(reason, quarantine[0].reason), quarantine[0].reason


def test_a_dangling_demo_does_not_hide_the_others(root: Path, task: Task) -> None:
    path = demo_file(root, task)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.SoftLink("/nowhere")
    demos, quarantine = scan(root, "libero_spatial", [task])
    assert len(demos) == 11
    assert [(q.demo, q.reason[:14]) for q in quarantine] == [("demo_1", "cannot be read")]
    with h5py.File(path, "r+") as file:
        file["data"].attrs["sim"] = "{"
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read"):
        recorded_with(path)


def test_what_all_demonstrations_lack_is_said_once(root: Path, task: Task) -> None:
    path = demo_file(root, task)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/joint_states"], demo["obs/ee_states"]
    demos, quarantine = scan(root, "libero_spatial", [task])
    reason = "each of its 12 demonstrations lacks obs/joint_states, obs/ee_states"
    assert (demos, [str(q) for q in quarantine]) == ([], [f"{path}: {reason}"])


def test_what_is_left_out_is_named_as_its_owner_knows_it(root: Path, task: Task, tmp_path: Path) -> None:
    path = demo_file(root, task)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/actions"]
    link = demo_file(tmp_path / "linked", task)
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    demos, quarantine = scan(tmp_path / "linked", "libero_spatial", [task])
    assert [str(q) for q in quarantine] == [f"{path} demo_2: lacks actions"]
    assert str(demos[0]) == f"{path} demo_0"


def test_frames_that_are_upright_in_the_file_are_refused(root: Path, task: Task) -> None:
    with h5py.File(demo_file(root, task), "r+") as file:
        file["data"].attrs["macros_image_convention"] = "opencv"
    demos, quarantine = scan(root, "libero_spatial", [task])
    assert not demos and "is 'opencv': its frames are not upside-down" in quarantine[0].reason
    with h5py.File(demo_file(root, task), "r+") as file:
        del file["data"].attrs["macros_image_convention"]
    assert len(scan(root, "libero_spatial", [task])[0]) == 12, "who does not say is taken for LIBERO's"


def test_a_number_of_demos_that_is_none_is_not_damage(root: Path, task: Task, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(demo_file(root, task), "r+") as file:
        file["data"].attrs["num_demos"] = "two"
    assert (len(scan(root, "libero_spatial", [task])[0]), scan(root, "libero_spatial", [task])[1]) == (12, [])
    assert "num_demos is 'two', which is no number" in caplog.text


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.mkdir(), "is a directory, not a file"),
        (lambda path: os.mkfifo(path), "is a FIFO, not a file"),
        (lambda path: path.symlink_to(path), "is a symbolic link that leads back to itself"),
        (lambda path: path.symlink_to("gone.hdf5"), "is a symbolic link to gone.hdf5, which is not there"),
    ],
)
def test_what_is_no_file_is_called_by_its_name(
    tmp_path: Path, task: Task, make: Callable[[Path], None], problem: str
) -> None:
    path = demo_file(tmp_path, task)
    path.parent.mkdir()
    make(path)
    with pytest.raises(DataError, match=f"{path} {problem}: no demonstrations"):
        scan(tmp_path, "libero_spatial", [task])


def recorded(root: Path, task: Task, shift: int | None) -> None:
    """Move the arm, and record its observations after (1) or before (0) the action, or without full states."""
    with h5py.File(demo_file(root, task), "r+") as file:
        for demo in file["data"].values():
            length = len(demo["actions"])
            joints = np.sin(np.arange(length + 1)[:, None] * 0.1 + np.arange(7))
            demo["states"][:, 1:8] = joints[:-1]
            demo["obs/joint_states"][:] = joints[shift or 0 :][:length] + 0.002
            if shift is None:
                del demo["states"]


@pytest.mark.parametrize("shift", [0, 1, None])
def test_the_shift_of_observations_is_measured(root: Path, task: Task, shift: int | None) -> None:
    recorded(root, task, shift)
    demos, _ = scan(root, "libero_spatial", [task])
    assert len(demos) == 12 and {demo.obs_shift for demo in demos} == {shift}


def test_what_does_not_move_is_not_measured(root: Path, task: Task) -> None:
    with h5py.File(demo_file(root, task), "r+") as file:
        for demo in file["data"].values():
            demo["states"][:, 1:8] = 0.5
            demo["obs/joint_states"][:] = 0.5
    assert {demo.obs_shift for demo in scan(root, "libero_spatial", [task])[0]} == {None}


def test_missing_demos_and_foreign_files_are_listed(root: Path, task: Task) -> None:
    path = demo_file(root, task)
    with h5py.File(path, "r+") as file:
        del file["data/demo_11"], file["data/demo_4"]
    demos, quarantine = scan(root, "libero_spatial", [task])
    assert len(demos) == 10
    assert [q.demo for q in quarantine] == ["demo_4", "demo_11"]
    for content, reason in (
        (path.read_bytes()[:100_000], "truncated or damaged"),
        (b"<html>not found</html>", "is a web page, not HDF5"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"", "is empty"),
        (b"PK", "is not HDF5"),
    ):
        path.write_bytes(content)
        demos, quarantine = scan(root, "libero_spatial", [task])
        assert demos == []
        assert [q.demo for q in quarantine] == [None]
        assert reason in quarantine[0].reason and str(path) in str(quarantine[0])


def test_errors_name_the_remedy(root: Path, task: Task) -> None:
    with pytest.raises(
        DataError, match=r"is not there: no demonstrations .* task 0.*python -m stages\.demos.*'official'"
    ):
        scan(root, "libero_spatial", tasks("libero_spatial", [0]))
    with pytest.raises(DataError, match=r"no camera 'agent_view'.*Did you mean 'agentview'"):
        scan(root, "libero_spatial", [task], cameras=("agent_view",))
    demos, _ = scan(root, "libero_spatial", [task])
    demo_file(root, task).unlink()
    with pytest.raises(DataError, match="demo_0: cannot be read"):
        read(demos[0], ("agentview",))


def test_the_digest_follows_content_only(root: Path, task: Task, tmp_path_factory: pytest.TempPathFactory) -> None:
    digests = [digest(demo) for demo in scan(root, "libero_spatial", [task])[0]]
    assert len(set(digests)) == 12
    elsewhere = tmp_path_factory.mktemp("copy")
    copy = demo_file(elsewhere, task)
    copy.parent.mkdir()
    copy.write_bytes(demo_file(root, task).read_bytes())
    copied, _ = scan(elsewhere, "libero_spatial", [task])
    assert [digest(demo) for demo in copied] == digests
    with h5py.File(copy, "r+") as file:
        file["data/demo_3/obs/agentview_rgb"][6, 0, 0, 0] = 1  # one pixel value
    assert [digest(demo) == before for demo, before in zip(copied, digests, strict=True)].index(False) == 3
    assert [digest(demo) for demo in copied[4:]] == digests[4:]


def test_the_guide_names_every_data_set() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "demonstrations.md").read_text()
    names = (*layout.LOWDIM_WIDTHS, *layout.OPTIONAL_WIDTHS, *(f"obs/{key}" for key in layout.IMAGE_KEYS.values()))
    assert not [name for name in names if name not in guide]


def test_no_ops_keep_gripper_changes() -> None:
    actions = np.zeros((4, 7))
    actions[:, 6] = [-1, -1, 1, 1]
    actions[3, 0] = 0.1
    assert no_ops(actions).tolist() == [True, True, False, False]
