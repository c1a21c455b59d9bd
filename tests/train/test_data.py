"""What training reads of a real store is what was put in, row by row, also when tasks are left out or stores joined."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from cache import schema
from cache.build import build
from cache.reader import open_store
from cache.units import Unit
from pipeline.errors import DataError
from pipeline.train.data import FeatureSpec, Mode, Table, load_stores
from pipeline.train.images import ResidentImages, StreamedImages
from pipeline.train.statistics import measure
from tests.cache.synthetic import LENGTHS, TEXT, MakeFake, episode_rows, make_plan


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 8 episodes, alternately of tasks 3 and 7."""
    root = tmp_path_factory.mktemp("store")
    plan = make_plan()
    identity = {**plan.identity, "transform": "t", "sim": None, "frame_size": 128, "views": 2}
    identity["grid"] = {"size": 2, "layer": -1}
    build(replace(plan, identity=identity), TEXT, MakeFake(), root / "a.zarr", root / "work")
    return root / "a.zarr"


def read(location: Path, tasks: tuple[int, ...] | None, cameras: tuple[str, ...] = ("eye_in_hand",)) -> Table:
    return load_stores(
        [("libero_spatial", open_store(location), tasks)], FeatureSpec(cameras, ("joint_pos",)), "action"
    )


def test_rows_are_the_episodes_one_after_the_other(location: Path) -> None:
    data = read(location, None)
    assert [e.length for e in data.episodes] == list(LENGTHS)
    assert [e.task for e in data.episodes] == [3, 7] * 4
    features = data.images.at(torch.arange(len(data)))["eye_in_hand"]
    for number, episode in enumerate(data.episodes):
        rows = slice(episode.first, episode.first + episode.length)
        expected = episode_rows(number, episode.length)
        np.testing.assert_array_equal(features[rows].numpy(), expected["image/eye_in_hand"][:, 0])
        np.testing.assert_array_equal(data.proprio["joint_pos"][rows].numpy(), expected["lowdim/joint_pos"])
        np.testing.assert_array_equal(data.action[rows].numpy(), expected["lowdim/action"])
        np.testing.assert_array_equal(
            data.text[data.text_of_row[rows]].numpy(), TEXT[[number % 2]].repeat(episode.length, 0)
        )
        assert set(data.last[rows].tolist()) == {episode.first + episode.length - 1}


class MakePoses(MakeFake):
    """The hand in row r of episode n is at (n, r, 0)."""

    def rows(self, unit: Unit) -> dict[str, np.ndarray]:
        poses = np.zeros((sum(s.stop - s.start for s in unit.segments), 7), np.float32)
        poses[:, :2] = [(s.payload, row) for s in unit.segments for row in range(s.start, s.stop)]
        return super().rows(unit) | {"lowdim/ee_pose": poses}


def test_keyframes_are_where_the_hand_is_when_the_gripper_changes(tmp_path: Path) -> None:
    plan = make_plan()
    build(
        replace(plan, fields=(*plan.fields, schema.lowdim("ee_pose", 7))),
        TEXT,
        MakePoses(),
        tmp_path / "a.zarr",
        tmp_path / "work",
    )
    wanted = FeatureSpec(("eye_in_hand",), (), keyframes=True)
    data = load_stores([("s", open_store(tmp_path / "a.zarr"), (7,))], wanted, "action")
    for number, episode in zip((1, 3, 5, 7), data.episodes, strict=True):
        closed = episode_rows(number, episode.length)["lowdim/action"][:, 6] > 0
        changes = [*(np.flatnonzero(closed[1:] != closed[:-1]) + 1), episode.length - 1, episode.length - 1]
        for row in range(episode.length):
            first, second = [*(c for c in changes if c > row), episode.length - 1, episode.length - 1][:2]
            found = data.batch(torch.tensor([episode.first + row]), 1).keyframes
            assert found is not None and found.tolist() == [[number, first, 0, number, second, 0]]


def test_one_task_of_two(location: Path) -> None:
    data = read(location, (7,))
    assert [e.source for e in data.episodes] == [f"file{i % 3}/demo_{i}" for i in (1, 3, 5, 7)]
    assert len(data) == sum(LENGTHS[1::2])
    np.testing.assert_array_equal(data.action[21 : 21 + 8].numpy(), episode_rows(3, 8)["lowdim/action"])
    assert torch.equal(data.text[data.text_of_row[0]], torch.from_numpy(TEXT[1]))


def test_two_stores_are_joined(location: Path) -> None:
    store = open_store(location)
    joined = load_stores(
        [("a", store, (7,)), ("b", store, None)], FeatureSpec(("agentview",), ("joint_pos",)), "action"
    )
    first, second = read(location, (7,), ("agentview",)), read(location, None, ("agentview",))
    n = len(first)
    assert torch.equal(joined.action[n:], second.action)
    assert torch.equal(joined.last[n:], second.last + n)
    assert torch.equal(joined.text[joined.text_of_row[n:]], second.text[second.text_of_row])
    batch = joined.batch(torch.tensor([n]), 3)
    assert torch.equal(batch.actions[0], second.batch(torch.tensor([0]), 3).actions[0])


def test_what_is_not_in_the_store_is_refused_by_name(location: Path) -> None:
    with pytest.raises(DataError, match=r"no camera 'agentveiw'. Did you mean 'agentview'"):
        read(location, None, ("agentveiw",))
    with pytest.raises(DataError, match=r"no episode of task \[5\]"):
        read(location, (7, 5))
    with pytest.raises(DataError, match=r"train_flow\.action=action"):
        load_stores([("s", open_store(location), None)], FeatureSpec(("agentview",), ()), "expert_action")
    with pytest.raises(DataError, match=r"no lowdim/gripper, which policy\.proprio asks for"):
        load_stores([("s", open_store(location), None)], FeatureSpec(("agentview",), ("gripper",)), "action")
    with pytest.raises(DataError, match=r"has no lowdim/ee_pose, which train_flow\.keyframe_weight takes"):
        load_stores([("s", open_store(location), None)], FeatureSpec(("agentview",), (), keyframes=True), "action")


def streamed_and_resident(location: Path, tasks: tuple[int, ...] | None = (7,)) -> tuple[Table, Table]:
    """Return two stores joined, held in memory and streamed."""
    stores = [("a", open_store(location), tasks), ("b", open_store(location), None)]

    def load(mode: Mode) -> Table:
        return load_stores(
            stores, FeatureSpec(("agentview", "eye_in_hand"), ("joint_pos",)), "action", mode, memory_mib=1
        )

    return load("streaming"), load("resident")


def test_streamed_images_are_those_in_memory(location: Path) -> None:
    streamed, resident = streamed_and_resident(location)
    for rows in (torch.arange(len(resident)), torch.tensor([0, 1, 20, 21, 40, 60, 100]), torch.tensor([5])):
        for camera, features in resident.images.at(rows).items():
            assert torch.equal(streamed.images.at(rows)[camera], features)
    assert streamed.images.dim == resident.images.dim == 6


def test_a_streamed_epoch_has_the_right_features_and_each_row_as_often_as_asked(location: Path) -> None:
    streamed, resident = streamed_and_resident(location)
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 3, (len(resident),), generator=generator)
    orders = []
    for epoch in (0, 1):
        rows = []
        for batch, images in streamed.images.epoch(counts, 8, seed=0, epoch=epoch):
            for camera, features in resident.images.at(batch).items():
                assert torch.equal(images[camera], features)
            rows.append(batch)
        assert [len(part) for part in rows[:-1]] == [8] * (len(rows) - 1)
        orders.append(torch.cat(rows))
        assert torch.equal(torch.bincount(orders[-1], minlength=len(resident)), counts)
    assert not torch.equal(*orders)


@pytest.mark.parametrize("kind", ["image", "grid"])
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_training_is_shown_the_views_that_are_drawn(location: Path, mode: Mode, kind: Literal["image", "grid"]) -> None:
    cameras = ("agentview", "eye_in_hand") if kind == "image" else ("eye_in_hand",)
    wanted = FeatureSpec(cameras, ("joint_pos",), kind, augmented=True)
    data = load_stores([("s", open_store(location), None)], wanted, "action", mode, memory_mib=1)
    every = {c: np.concatenate([episode_rows(i, n)[f"{kind}/{c}"] for i, n in enumerate(LENGTHS)]) for c in cameras}
    assert data.images.views == every["eye_in_hand"].shape[1] == 2
    generator = torch.Generator().manual_seed(0)
    drawn = set()
    for rows, images in data.images.epoch(torch.ones(len(data), dtype=torch.int64), 16, seed=0, epoch=0):
        views = {c: torch.randint(2, (len(rows),), generator=generator) for c in every}
        shown = data.batch(rows, 2, images, views).images
        for camera, features in every.items():
            np.testing.assert_array_equal(shown[camera], features[rows.numpy(), views[camera].numpy()])
            drawn |= set(views[camera].tolist())
    assert drawn == {0, 1}
    rows = torch.arange(len(data))
    clean = data.batch(rows, 2).images
    for camera, features in every.items():
        np.testing.assert_array_equal(clean[camera], features[:, 0], err_msg="what is not drawn is the frame as it is")


def test_each_look_of_a_history_has_a_view_of_its_own(location: Path) -> None:
    wanted = FeatureSpec(("eye_in_hand",), (), n_obs_steps=2, stride=2, augmented=True)
    data = load_stores([("s", open_store(location), None)], wanted, "action")
    views = {"eye_in_hand": torch.tensor([[1, 0], [0, 1]])}
    shown = data.batch(torch.tensor([9, 9]), 2, drawn=views).images["eye_in_hand"]
    rows = np.concatenate([episode_rows(i, n)["image/eye_in_hand"] for i, n in enumerate(LENGTHS)])
    np.testing.assert_array_equal(shown, [[rows[7, 1], rows[9, 0]], [rows[7, 0], rows[9, 1]]])


def test_the_mode_follows_from_the_size(location: Path, caplog: pytest.LogCaptureFixture) -> None:
    stores = [("s", open_store(location), None)]
    with caplog.at_level("INFO"):
        assert isinstance(
            load_stores(stores, FeatureSpec(("agentview",), ()), "action", "auto", 1).images, ResidentImages
        )
        assert isinstance(
            load_stores(stores, FeatureSpec(("agentview",), ()), "action", "auto", 0).images, StreamedImages
        )
    assert "87 rows, 0 MiB of image features: held in memory" in caplog.text and ": streamed" in caplog.text


def test_tasks_of_all_suites_have_numbers_of_their_own(location: Path) -> None:
    streamed, _ = streamed_and_resident(location)
    n = sum(LENGTHS[1::2])
    tasks = streamed.tasks()
    assert set(tasks[:n].tolist()) == {0} and set(tasks[n:].tolist()) == {1, 2}
    assert tasks[n : n + 6].tolist() == [1] * 5 + [2]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_patch_tokens_are_read_as_pooled_features_are(location: Path, mode: Mode) -> None:
    wanted = FeatureSpec(("eye_in_hand",), (), kind="grid")
    data = load_stores([("s", open_store(location), None)], wanted, "action", mode, memory_mib=1)
    assert data.images.dim == 5
    expected = torch.from_numpy(
        np.concatenate([episode_rows(i, n)["grid/eye_in_hand"][:, 0] for i, n in enumerate(LENGTHS)])
    )
    assert torch.equal(data.images.at(torch.arange(len(data)))["eye_in_hand"], expected)
    for batch, images in data.images.epoch(torch.ones(len(data), dtype=torch.int64), 16, seed=0, epoch=0):
        assert torch.equal(data.batch(batch, 2, images).images["eye_in_hand"], expected[batch])


@pytest.mark.parametrize("kind", ["image", "grid"])
def test_with_a_history_a_row_is_seen_with_those_before_it(location: Path, kind: Literal["image", "grid"]) -> None:
    stores = [("s", open_store(location), None)]
    plain = load_stores(stores, FeatureSpec(("eye_in_hand",), ("joint_pos",), kind), "action")
    data = load_stores(stores, FeatureSpec(("eye_in_hand",), ("joint_pos",), kind, n_obs_steps=3, stride=2), "action")
    rows = torch.tensor([0, 6, 9, 26])  # of episodes of rows 0-4, 5-25 and 26
    seen = torch.tensor([[0, 0, 0], [5, 5, 6], [5, 7, 9], [26, 26, 26]])
    batch = data.batch(rows, 2)
    assert torch.equal(
        batch.images["eye_in_hand"], plain.images.at(seen.flatten())["eye_in_hand"].unflatten(0, seen.shape)
    )
    assert torch.equal(batch.proprio["joint_pos"], plain.proprio["joint_pos"][seen])
    assert torch.equal(batch.actions, plain.batch(rows, 2).actions)
    newest, alone = (measure(table, torch.arange(20)).images["eye_in_hand"] for table in (data, plain))
    assert torch.equal(newest.mean, alone.mean), "a row counts once, however often it is seen"
    with pytest.raises(DataError, match=r"policy\.n_obs_steps is 3.*train_flow\.data_mode: resident"):
        load_stores(stores, FeatureSpec(("eye_in_hand",), (), n_obs_steps=3), "action", "streaming")


def test_a_grid_or_views_that_the_store_lacks_are_refused(location: Path, tmp_path: Path) -> None:
    plan = make_plan()
    build(replace(plan, identity={**plan.identity, "transform": "t"}), TEXT, MakeFake(), tmp_path / "a", tmp_path / "w")
    with pytest.raises(DataError, match=r"one view of each frame.*Set embed\.views to 2 or more"):
        load_stores(
            [("s", open_store(tmp_path / "a"), None)], FeatureSpec(("eye_in_hand",), (), augmented=True), "action"
        )
    with pytest.raises(DataError, match=r"no patch tokens.*Set embed\.grid and embed again"):
        load_stores([("s", open_store(tmp_path / "a"), None)], FeatureSpec(("eye_in_hand",), (), kind="grid"), "action")
