"""The stage as it is called: a small CLIP, real files, real kills."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cache import open_store
from cache.verify import verify
from pipeline.encode.augment import Views, relight
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.encode.settings import GridParams
from pipeline.errors import DataError, PipelineError
from pipeline.libero.demos.read import Demo, demo_file, read, scan
from pipeline.libero.installation import official_picture_identity, picture_identity
from pipeline.libero.suites import tasks
from stages.embed import main
from tests.encode import tiny
from tests.stages.embedding import LENGTHS, SUITE, TASKS, arguments, content, demonstrations, settings, took


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations, settings and a store built in this process."""
    folder = tmp_path_factory.mktemp("embed")
    demonstrations(folder)
    main(arguments(folder, folder))
    return folder


def test_rows_are_what_the_files_and_clip_say(base: Path) -> None:
    store = open_store(base / "out" / f"{SUITE}.zarr")
    encoder = ClipEncoder(tiny.PARAMS)
    chosen = tasks(SUITE, TASKS)
    demos, _ = scan(base / "demos", SUITE, chosen)
    assert store.rows == sum(demo.length - 1 for demo in demos) == 2 * (sum(LENGTHS) - 4)
    assert store.cameras == ("agentview", "eye_in_hand")
    assert store.identity["encoder"] == encoder.identity
    assert (store.identity["transform"], store.identity["obs_shift"], store.identity["views"]) == (TRANSFORM_ID, 1, 1)
    assert store.identity["sim"] == picture_identity(tiny.SIM)
    assert store.texts.instructions == [task.language for task in chosen]
    np.testing.assert_array_equal(store.texts.task_ids, TASKS)
    np.testing.assert_array_equal(store.texts.embedding, encoder.text(store.texts.instructions))
    whole = {name: store.read(name) for name in store.fields}
    by_source = {f"{demo.file.name}/{demo.name}": demo for demo in demos}
    episodes = store.episodes
    order = [(by_source[source].task, by_source[source].name) for source in episodes.source]
    assert order == [(task, f"demo_{number}") for number in range(len(LENGTHS)) for task in chosen]
    assert [chosen[task] for task in episodes.task] == [task for task, _ in order]
    for source, start, length in zip(episodes.source, episodes.start, episodes.length, strict=True):
        demo = by_source[source]
        raw, rows = read(demo, store.cameras), slice(start, start + length)
        for camera in store.cameras:
            features = encoder.images(raw["images"][camera][:-1]).astype(np.float32)
            # Batches differ, hence the last bits may.
            np.testing.assert_allclose(whole[f"image/{camera}"][rows, 0], features, rtol=2e-3, atol=2e-3)
        for name in ("joint_pos", "ee_pose", "gripper"):
            np.testing.assert_array_equal(whole[f"lowdim/{name}"][rows], raw[name][:-1])
        for name in ("action", "expert_action"):
            np.testing.assert_array_equal(whole[f"lowdim/{name}"][rows], raw[name][1:])


def test_a_second_run_does_nothing(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(base)
    main(arguments(base, base))
    assert "up to date" in capsys.readouterr().out
    assert content(base) == before
    record = json.loads((base / "scratch" / f"{SUITE}.json").read_text())
    assert record["took"]["images"] == 2 * 2 * (sum(LENGTHS) - 4)
    assert "versions" in record["provenance"] and record["weights"] is None, "seeded: not from the hub"


def test_obs_shift_zero_keeps_all_rows(base: Path, tmp_path: Path) -> None:
    main(arguments(base, tmp_path, obs_shift=0))
    store = open_store(tmp_path / "out" / f"{SUITE}.zarr")
    assert store.rows == 2 * sum(LENGTHS)
    demos, _ = scan(base / "demos", SUITE, tasks(SUITE, TASKS))
    raw = read(demos[1], ())
    np.testing.assert_array_equal(store.read("lowdim/action", 40, 73), raw["action"])
    np.testing.assert_array_equal(store.read("lowdim/joint_pos", 40, 73), raw["joint_pos"])


def test_views(base: Path, tmp_path: Path) -> None:
    main(arguments(base, tmp_path, views=3, brightness=0.4, contrast=0.1))
    clean, lit = open_store(base / "out" / f"{SUITE}.zarr"), open_store(tmp_path / "out" / f"{SUITE}.zarr")
    assert lit.fingerprint != clean.fingerprint
    demos, _ = scan(base / "demos", SUITE, tasks(SUITE, TASKS))
    encoder = ClipEncoder(tiny.PARAMS)
    for camera in lit.cameras:
        features = lit.read(f"image/{camera}")
        assert features.shape == (lit.rows, 3, encoder.dim)
        np.testing.assert_array_equal(features[:, :1], clean.read(f"image/{camera}"))
        frames = read(demos[1], (camera,))["images"][camera][:32]
        where = lit.episodes.source.index(f"{demos[1].file.name}/{demos[1].name}")
        first, digest = lit.episodes.start[where], lit.episodes.digest[where]
        for view in (1, 2):
            light = Views(3, 0.4, 0.1).factors(digest, 0, 32, camera, view)
            by_hand = relight(torch.from_numpy(frames), light).numpy()
            expected = encoder.images(by_hand).astype(np.float32)
            np.testing.assert_allclose(features[first : first + 32, view], expected, rtol=2e-3, atol=2e-3)
            assert np.abs(expected - encoder.images(frames)).max() > 0.05


def test_grid(base: Path, tmp_path: Path) -> None:
    main(arguments(base, tmp_path, grid={"size": 2, "layer": -2}, views=2))
    plain, store = open_store(base / "out" / f"{SUITE}.zarr"), open_store(tmp_path / "out" / f"{SUITE}.zarr")
    assert store.identity["grid"] == {"size": 2, "layer": -2}
    assert verify(store.location) == []
    demos, _ = scan(base / "demos", SUITE, tasks(SUITE, TASKS))
    encoder = ClipEncoder(tiny.PARAMS, grid=GridParams(2, -2))
    where = store.episodes.source.index(f"{demos[1].file.name}/{demos[1].name}")
    first = int(store.episodes.start[where])
    for camera in store.cameras:
        np.testing.assert_array_equal(store.read(f"image/{camera}")[:, :1], plain.read(f"image/{camera}"))
        assert store.array(f"grid/{camera}").shape[1:] == (2, 4, 32)
        tokens = store.read(f"grid/{camera}", first, first + 32)
        frames = read(demos[1], (camera,))["images"][camera][:32]
        expected = encoder.forward(encoder.prepare(frames))["grid"].astype(np.float32)
        np.testing.assert_allclose(tokens[:, 0], expected, rtol=2e-3, atol=2e-3)
        assert np.abs(tokens[:, 1] - expected).max() > 0.05


def test_later_demonstrations_cost_the_last_shards_only(base: Path, tmp_path: Path) -> None:
    """Eight of 20 steps make 152 rows in 5 shards of 32; the last has 24. Four more make 228 rows in 8."""
    for more, computed in (([], 152), ([20, 20], 228 - 4 * 32)):
        for task in tasks(SUITE, TASKS):
            tiny.demonstrations(tmp_path / "demos", task, [20] * 4 + more)
        main(arguments(tmp_path, tmp_path))
        assert took(tmp_path)["images"] == 2 * computed
    assert took(tmp_path)["images_resumed"] == 2 * 4 * 32
    main(arguments(tmp_path, tmp_path / "anew"))
    assert content(tmp_path / "anew") == content(tmp_path)


def test_repair(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(base, tmp_path))
    shard = tmp_path / "out" / f"{SUITE}.zarr" / "image/eye_in_hand/c/2/0/0"
    content_before = content(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-100])
    assert content(tmp_path) != content_before
    main([*arguments(base, tmp_path), "--repair"])
    assert "made units [2] anew" in capsys.readouterr().out
    assert content(tmp_path) == content_before == content(base)
    main([*arguments(base, tmp_path), "--repair"])
    assert "sound, nothing to repair" in capsys.readouterr().out


def test_settings_of_views_that_are_not_there_change_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments(base, tmp_path, brightness=0.9, contrast=0.9)
    options = [f"--demos={base / 'demos'}", f"--out={base / 'out'}", f"--scratch={tmp_path / 'scratch'}"]
    main([f"--params={tmp_path / 'params.yaml'}", *options])
    assert "up to date" in capsys.readouterr().out


@pytest.fixture
def damaged(base: Path, tmp_path: Path) -> Path:
    """The demonstrations, one of them with an action that is not a number, and one with one step only."""
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(tmp_path / "demos", task, [*LENGTHS, 1])
    with h5py.File(demo_file(tmp_path / "demos", tasks(SUITE, [3])[0]), "r+") as file:
        file["data/demo_1/actions"][3, 2] = np.nan
    return tmp_path / "demos"


def test_damaged_demonstrations_are_left_out(
    base: Path, tmp_path: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(arguments(base, tmp_path, damaged))
    store = open_store(tmp_path / "out" / f"{SUITE}.zarr")
    assert store.rows == 2 * (sum(LENGTHS) - 4) - (LENGTHS[1] - 1)
    assert f"{demo_file(damaged, tasks(SUITE, [3])[0]).name}/demo_1" not in store.episodes.source
    assert caplog.text.count("quarantined") == 3
    assert verify(tmp_path / "out" / f"{SUITE}.zarr") == []


def test_damaged_demonstrations_stop_the_build(base: Path, tmp_path: Path, damaged: Path) -> None:
    with pytest.raises(DataError, match=r"3 damaged demonstrations, first .*embed.on_invalid: quarantine"):
        main(arguments(base, tmp_path, damaged, on_invalid="stop"))
    assert not (tmp_path / "out").exists()


def breaks(folder: Path, whole_file: bool) -> Callable[..., dict]:
    """Return a `read` that finds task 3's demo_1 broken at its 20th row, and with it its file, if asked."""
    victim = demo_file(folder, tasks(SUITE, [3])[0])

    def reading(demo: Demo, cameras: tuple[str, ...], start: int, stop: int) -> dict:
        if (demo.file, demo.name) == (victim, "demo_1") and stop > 20:
            if whole_file:
                victim.write_bytes(victim.read_bytes()[:4000])
                return read(demo, cameras, start, stop)
            raise DataError(f"{demo.file} {demo.name}: cannot be read: bad sector")
        return read(demo, cameras, start, stop)

    return reading


@pytest.fixture
def doomed(tmp_path: Path) -> Path:
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(tmp_path / "demos", task, LENGTHS)
    return tmp_path / "demos"


def test_a_demonstration_that_breaks_during_the_build_is_left_out(
    base: Path, tmp_path: Path, doomed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.embed.worker.read", breaks(doomed, whole_file=False))
    main(arguments(base, tmp_path, doomed))
    store = open_store(tmp_path / "out" / f"{SUITE}.zarr")
    file = demo_file(doomed, tasks(SUITE, [3])[0])
    assert len(store.episodes) == 7 and f"{file.name}/demo_1" not in store.episodes.source
    assert f"quarantined {file} demo_1: {file} demo_1: cannot be read: bad sector" in caplog.text
    assert verify(store.location) == []
    # Two shards lie before the demonstration that broke; the second may not have been written by then.
    assert took(tmp_path)["images_resumed"] in (64, 2 * 64)
    assert sorted(path.name for path in (tmp_path / "scratch" / SUITE).iterdir()) == [store.fingerprint[:16], "units"]
    main(arguments(base, tmp_path / "anew", doomed))
    assert content(tmp_path / "anew") == content(tmp_path)


def test_a_demonstration_that_breaks_during_the_build_stops_it(
    base: Path, tmp_path: Path, doomed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.embed.worker.read", breaks(doomed, whole_file=False))
        with pytest.raises(DataError, match=r"demo_1: cannot be read: bad sector .* is kept.*: quarantine"):
            main(arguments(base, tmp_path, doomed, on_invalid="stop"))
    assert not (tmp_path / "out").exists()
    main(arguments(base, tmp_path, doomed, on_invalid="stop"))
    assert took(tmp_path)["images_resumed"] >= 64
    assert content(tmp_path) == content(base)


def test_a_file_that_breaks_during_the_build(
    base: Path, tmp_path: Path, doomed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.embed.worker.read", breaks(doomed, whole_file=True))
    with pytest.raises(DataError, match=r"task 3 .* has no usable demonstration; the first problem is .*_demo.hdf5"):
        main(arguments(base, tmp_path, doomed))


def test_verify_encodes_again(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*arguments(base, base), "--verify", "--sample", "100"])
    found = re.search(
        r"(\d+) of 224 rows encoded again: \1 equal bit for bit, cosine .* 1.000000", capsys.readouterr().out
    )
    assert found and 90 <= int(found[1]) <= 108
    main([*arguments(base, base, batch_size=7), "--verify", "--sample", "1000"])
    assert re.search(r"224 of 224 rows .*, cosine at least (0.9999|1.0000)", capsys.readouterr().out)


def test_verify_finds_other_frames_and_values(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(demo: Demo, cameras: tuple[str, ...], start: int, stop: int) -> dict:
        rows = read(demo, cameras, start, stop)
        return {**rows, "images": {c: x[::-1] for c, x in rows["images"].items()}, "gripper": rows["gripper"] + 1e-4}

    monkeypatch.setattr("pipeline.embed.worker.read", reading)
    with pytest.raises(SystemExit) as caught:
        main([*arguments(base, base), "--verify", "--sample", "12"])
    assert re.search(r"image/eye_in_hand: row \d+ has cosine 0\.", str(caught.value))
    assert re.search(r"lowdim/gripper: row \d+ is \[.*\], its demonstration has \[", str(caught.value))


def test_verify_finds_what_differs(
    base: Path, tmp_path: Path, doomed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*arguments(base, tmp_path, doomed), f"--out={base / 'out'}", "--verify", "--sample", "1000"]
    file = demo_file(doomed, tasks(SUITE, [3])[0])
    with h5py.File(file, "r+") as opened:
        opened["data/demo_3/obs/agentview_rgb"][7] = 0
    with pytest.raises(SystemExit, match=rf"{file} demo_3: has changed since it was embedded"):
        main(options)
    with h5py.File(file, "r+") as opened:
        del opened["data/demo_3"]
    main(options)
    assert re.search(r"[1-9]\d* rows drawn have no demonstration here", capsys.readouterr().out)
    settings(tmp_path, views=2)
    with pytest.raises(DataError, match=r"views is 1 in the store, 2 now; augment is None .*Set them back"):
        main(options)
    path = settings(tmp_path, cameras=["agentview", "eye_in_hand", "agentview_depth"])
    path.write_text(path.read_text().replace("depth: false", "depth: true"))
    with pytest.raises(DataError, match=r"cameras agentview, eye_in_hand, embed\.cameras asks for .*agentview_depth"):
        main(options)


def test_other_settings_replace_the_store_and_say_why(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(arguments(base, tmp_path))
    assert "will be replaced" not in caplog.text
    main(arguments(base, tmp_path, obs_shift=0, batch_size=None))
    text = r"identity.obs_shift is 1 in the store, 0 now"
    assert text in caplog.text and "rows is 224 in the store, 232 now" in caplog.text


def test_missing_demonstrations(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no demonstrations of libero_spatial task 0"):
        main(arguments(base, tmp_path, tmp_path / "nowhere"))


def test_a_target_that_cannot_be_written_is_told_before_the_work(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the directory is to be")
    with pytest.raises(PipelineError, match=r"out: cannot be written: Not a directory\. Put that right"):
        main(arguments(base, tmp_path))
    assert not (tmp_path / "scratch").exists()


def test_frames_of_another_size(base: Path, tmp_path: Path) -> None:
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(tmp_path / "demos", task, LENGTHS[:1])
    with h5py.File(demo_file(tmp_path / "demos", tasks(SUITE, [3])[0]), "r+") as file:
        obs = file["data/demo_0/obs"]
        for name in ("agentview_rgb", "eye_in_hand_rgb"):
            frames = obs[name][()]
            del obs[name]
            obs[name] = frames[:, ::2, ::2]
    with pytest.raises(DataError, match=r"the frames of .* are (\d+)x\1, those of .*One store takes one size"):
        main(arguments(base, tmp_path, tmp_path / "demos"))


def test_files_recorded_unlike_each_other(base: Path, tmp_path: Path) -> None:
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(tmp_path / "demos", task, LENGTHS[:1])
    with h5py.File(demo_file(tmp_path / "demos", tasks(SUITE, [3])[0]), "r+") as file:
        sim = json.loads(file["data"].attrs["sim"])
        file["data"].attrs["sim"] = json.dumps({**sim, "render": "full"})
    with pytest.raises(DataError, match=r"was recorded with .*One store takes one kind of rendering"):
        main(arguments(base, tmp_path, tmp_path / "demos"))


def test_files_that_do_not_tell_are_taken_for_liberos_own(base: Path, tmp_path: Path) -> None:
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(tmp_path / "demos", task, LENGTHS[:1])
        with h5py.File(demo_file(tmp_path / "demos", task), "r+") as file:
            del file["data"].attrs["sim"]
    main(arguments(base, tmp_path, tmp_path / "demos"))
    identity = open_store(tmp_path / "out" / f"{SUITE}.zarr").identity
    assert identity["sim"] == official_picture_identity(tiny.SIM.image_size)


def recorded(root: Path, shifts: dict[int, int]) -> None:
    """Write demonstrations whose observations were recorded after (1) or before (0) the action: task -> which."""
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(root, task, [20, 33])
        with h5py.File(demo_file(root, task), "r+") as file:
            for demo in file["data"].values():
                length = len(demo["actions"])
                joints = np.sin(np.arange(length + 1)[:, None] * 0.1 + np.arange(7))
                demo["states"][:, 1:8] = joints[:-1]
                demo["obs/joint_states"][:] = joints[shifts[task.id] :][:length]


def test_observations_recorded_in_the_other_order_are_refused(base: Path, tmp_path: Path) -> None:
    for shift, order in ((0, "before"), (1, "after")):
        folder = tmp_path / order
        recorded(folder / "demos", {0: shift, 3: shift})
        file = demo_file(folder / "demos", tasks(SUITE, [0])[0])
        text = rf"{file} demo_0: its observations were recorded {order} .* Set embed.obs_shift: {shift}$"
        with pytest.raises(DataError, match=text):
            main(arguments(base, folder, folder / "demos", obs_shift=1 - shift))
        main(arguments(base, folder, folder / "demos", obs_shift=shift))
        identity = open_store(folder / "out" / f"{SUITE}.zarr").identity
        assert identity["obs_shift"] == shift


def test_observations_recorded_in_both_orders_are_refused(base: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "demos", {0: 0, 3: 1})
    before, after = (demo_file(tmp_path / "demos", task) for task in tasks(SUITE, TASKS))
    text = rf"of {after} demo_0 were recorded after .*, those of {before} demo_0 before. One store takes one order"
    for shift in (0, 1):
        with pytest.raises(DataError, match=text):
            main(arguments(base, tmp_path, tmp_path / "demos", obs_shift=shift))


def test_a_store_that_says_something_else_of_itself_is_replaced(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(arguments(base, tmp_path))
    before = content(tmp_path)
    metadata = tmp_path / "out" / f"{SUITE}.zarr/zarr.json"
    metadata.write_text(metadata.read_text().replace('"obs_shift": 1', '"obs_shift": 0'))
    main(arguments(base, tmp_path))
    assert "cannot be used and will be replaced" in caplog.text and "fingerprint is" in caplog.text
    assert content(tmp_path) == before
    assert took(tmp_path)["images"] == 0, "its shards are taken over"
