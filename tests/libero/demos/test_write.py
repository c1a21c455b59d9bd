"""Files written here are read by readers that nobody here wrote, and are the same bytes each time."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import (
    load_part,
    portable_model,
    problem_info,
    save_part,
    write_demos,
)
from pipeline.libero.suites import Task, tasks
from tests.libero.synthetic import SIM, make_episode


@pytest.fixture
def task() -> Task:
    return tasks("libero_spatial", [0])[0]


def test_layout_is_that_of_create_dataset(tmp_path: Path, task: Task) -> None:
    episode = make_episode(9)
    path = demo_file(tmp_path, task)
    assert write_demos(path, task, [episode, make_episode(5, 1)], SIM) == 2
    assert path == tmp_path / "libero_spatial" / f"{task.name}_demo.hdf5"
    with h5py.File(path) as file:
        attrs = file["data"].attrs
        assert {"env_name", "problem_info", "env_args", "bddl_file_name", "bddl_file_content", "tag"} <= set(attrs)
        assert (attrs["num_demos"], attrs["total"], attrs["macros_image_convention"]) == (2, 14, "opengl")
        assert attrs["bddl_file_content"] == task.bddl_file.read_text()
        demo = file["data/demo_0"]
        assert demo.attrs["num_samples"] == 9
        np.testing.assert_array_equal(demo.attrs["init_state"], episode.states[0])
        expected = {
            "actions": (7,),
            "states": (92,),
            "robot_states": (9,),
            "rewards": (),
            "dones": (),
            "expert_actions": (7,),
            "obs/ee_wrench": (6,),
        }
        for name, tail in expected.items():
            assert demo[name].shape == (9, *tail)
            assert demo[name].dtype == (np.uint8 if name in ("rewards", "dones") else np.float64)
        for name, width in {"ee_states": 6, "ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}.items():
            assert demo["obs"][name].shape == (9, width)
            assert demo["obs"][name].dtype == np.float64
        assert demo["dones"][()].tolist() == demo["rewards"][()].tolist() == [0] * 8 + [1]
        for name in ("agentview_rgb", "eye_in_hand_rgb"):
            frames = demo["obs"][name]
            assert frames.chunks is None and frames.compression is None and frames.dtype == np.uint8
            assert (frames[:, -1] == (255, 0, 0)).all()  # upside-down: the top row comes last


def test_end_effector_states_are_what_robosuite_computes(tmp_path: Path, task: Task) -> None:
    """robosuite's quat2axisangle, written out: angle = 2 acos(w) in [0, 2 pi], no sign flip."""
    episode = make_episode(50)
    path = demo_file(tmp_path, task)
    write_demos(path, task, [episode], SIM)
    with h5py.File(path) as file:
        ee = file["data/demo_0/obs/ee_states"][()]
    quat = episode.ee_pose[:, 3:].astype(np.float64)
    angle = 2 * np.arccos(quat[:, 3])
    np.testing.assert_allclose(ee[:, 3:], quat[:, :3] / np.sin(angle / 2)[:, None] * angle[:, None], atol=1e-6)
    assert (ee[:, 3] > 2).all()  # LIBERO's mean is 3.06; a normalised axis-angle would jump to -3
    np.testing.assert_array_equal(ee[:, :3], episode.ee_pose[:, :3].astype(np.float64))


def test_robomimic_opens_it(tmp_path: Path, task: Task) -> None:
    from robomimic.utils import dataset as dataset_module
    from robomimic.utils import obs_utils

    episodes = [make_episode(6), make_episode(4, 1)]
    path = demo_file(tmp_path, task)
    write_demos(path, task, episodes, SIM)
    keys = {"rgb": ["agentview_rgb", "eye_in_hand_rgb"], "low_dim": ["gripper_states", "joint_states", "ee_states"]}
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": keys})
    # As LIBERO's own lifelong.datasets opens it.
    dataset = dataset_module.SequenceDataset(
        hdf5_path=str(path),
        obs_keys=[key for group in keys.values() for key in group],
        dataset_keys=["actions", "rewards", "dones"],
        load_next_obs=False,
        frame_stack=1,
        seq_length=3,
        hdf5_cache_mode="low_dim",
    )
    assert (dataset.n_demos, len(dataset)) == (2, 10)
    item = dataset[7]  # step 1 of the second demo
    np.testing.assert_allclose(item["actions"], episodes[1].actions[1:4])
    np.testing.assert_allclose(item["obs"]["joint_states"], episodes[1].joint_pos[1:4])
    frames = np.asarray(item["obs"]["agentview_rgb"])
    frames = frames if frames.shape[-1] == 3 else np.moveaxis(frames, 1, -1)  # robomimic may process to CHW in [0, 1]
    frames = frames * (255 if frames.max() <= 1 else 1)
    np.testing.assert_allclose(frames, episodes[1].images["agentview"][1:4, ::-1], atol=0.01)


def test_env_args_describe_the_environment(tmp_path: Path, task: Task) -> None:
    path = demo_file(tmp_path, task)
    write_demos(path, task, [make_episode(3)], SIM)
    with h5py.File(path) as file:
        meta = json.loads(file["data"].attrs["env_args"])
    assert meta["type"] == 1
    assert meta["env_name"] == "Libero_Tabletop_Manipulation"
    controller = meta["env_kwargs"]["controller_configs"]
    assert controller["type"] == "OSC_POSE"
    assert controller["output_max"] == [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
    assert not Path(meta["bddl_file"]).is_absolute()


def test_problem_info_is_liberos(task: Task) -> None:
    from bddl import parsing

    for each in tasks("libero_spatial"):
        tokens = parsing.scan_tokens(filename=str(each.bddl_file))
        groups = {group[0]: group[1:] for group in tokens[1:]}
        info = problem_info(each)
        assert info["problem_name"] == groups["problem"][0]
        assert info["language_instruction"] == " ".join(groups[":language"])
    assert "akita" in problem_info(task)["language_instruction"]
    assert "akita" not in task.language


def test_bytes_repeat_and_parts_lose_nothing(tmp_path: Path, task: Task) -> None:
    episodes = [make_episode(5, depth=True), make_episode(4, 1, depth=True)]
    for i, episode in enumerate(episodes):
        save_part(tmp_path / f"{i}.npz", episode)
    write_demos(tmp_path / "a.hdf5", task, episodes, SIM)
    write_demos(tmp_path / "b.hdf5", task, (load_part(tmp_path / f"{i}.npz") for i in range(2)), SIM)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_failure_leaves_the_old_file(tmp_path: Path, task: Task) -> None:
    path = tmp_path / "a.hdf5"
    write_demos(path, task, [make_episode(5)], SIM)
    before = path.read_bytes()
    with pytest.raises(DataError, match="no demonstrations"):
        write_demos(path, task, [], SIM)
    ragged = replace(make_episode(5), states=np.zeros((4, 92)))
    with pytest.raises(DataError, match="states has 4 rows"):
        write_demos(path, task, [ragged], SIM)
    assert path.read_bytes() == before


def test_model_files_lose_their_machine() -> None:
    xml = '<mesh file="/opt/venv/robosuite/models/a.stl"/><texture file="/data/pack/textures/b.png"/>'
    assert portable_model(xml, Path("/data/pack"), Path("/opt/venv/robosuite")) == (
        '<mesh file="robosuite/models/a.stl"/><texture file="libero/libero/assets/textures/b.png"/>'
    )
