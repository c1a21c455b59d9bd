"""`stages.act` on files: the numbers that the policy gives, beside the true ones; and words for what is missing."""

import json
import re
import shutil
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.inference.policy import Policy
from pipeline.inference.recordings import demonstration, picture, read_state, videos
from pipeline.libero.conventions import ACTION_NAMES
from pipeline.libero.demos.read import demo_file, read, scan
from pipeline.libero.suites import tasks
from stages import act
from tests.data.test_own import write_sound
from tests.encode import tiny
from tests.inference.make import BOWL, CAMERAS, bundle, observation
from tests.stages import browser

LENGTH = 20
TASK = tasks("libero_spatial", [0])[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, one that sees two observations, and two demonstrations."""
    folder = tmp_path_factory.mktemp("act")
    tiny.register(folder)
    bundle(folder / "policy")
    bundle(folder / "remembering", n_obs_steps=2)
    tiny.demonstrations(folder / "demos", TASK, [LENGTH, 9])
    return folder


def rows(text: str) -> np.ndarray:
    """Return the numbers of the first table in a text."""
    found = re.findall(r"(?m)^ +\d+((?: +-?\d\.\d{4}){7})$", text)
    return np.array([[float(number) for number in line.split()] for line in found])


def act_on(root: Path, *arguments: str, policy: str = "policy") -> None:
    act.main(["--policy", str(root / policy), "--device", "cpu", *arguments])


def test_a_demonstration(root: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file, plot = demo_file(root / "demos", TASK), tmp_path / "plots/chunk.html"
    act_on(root, "--demo", str(file), "--step", "5", "--samples", "3", "--seed", "4", "--plot", str(plot))
    said = capsys.readouterr().out
    assert f"“{TASK.language}”, after step 5: 4 actions, the mean of 3 samples" in said
    policy = Policy.load(root / "policy", "cpu")
    demo = scan(root / "demos", TASK.suite, [TASK])[0][0]
    held = read(demo, CAMERAS)
    seen = {camera: held["images"][camera][5] for camera in CAMERAS}
    seen |= {name: held[name][5] for name in ("joint_pos", "ee_pose", "gripper")}
    expected = policy.sample(seen, TASK.language, 3, seed=4)
    np.testing.assert_allclose(rows(said)[:4], expected.mean(0), atol=6e-5)
    np.testing.assert_allclose(rows(said)[4:], expected.std(0), atol=6e-5)
    true = held["action"][6:10]  # an observation is recorded after its action
    error = np.abs(expected - true).mean()
    assert f"mean {error:.4f}, over 4 steps and 3 samples" in said
    html = plot.read_text()
    page = browser.Page(html)
    assert "figure" in html and all(name in " ".join(page.text) for name in ACTION_NAMES)
    assert html.count("<polyline") == 7 * 4 and html.count('class="curve b"') == 7


def test_depth_of_a_demonstration_is_in_millimetres(root: Path, tmp_path: Path) -> None:
    """As a robot gives it, and a picture of it is refused."""
    bundle(tmp_path / "policy", cameras=("agentview", "agentview_depth"))
    file = Path(shutil.copy(demo_file(root / "demos", TASK), tmp_path))
    with h5py.File(file, "r+") as opened:
        obs = opened["data/demo_0/obs"]
        millimetres = np.random.default_rng(0).integers(100, 2000, (*obs["agentview_rgb"].shape[:3], 1), np.uint16)
        obs["agentview_depth_mm"] = millimetres
    policy = Policy.load(tmp_path / "policy", "cpu")
    recording = demonstration(file, "demo_0", policy.spec)
    found = recording.observations["agentview_depth"]
    np.testing.assert_array_equal(found, millimetres[:, ::-1])
    assert found.dtype == np.uint16 and list(recording.observations)[:2] == ["agentview", "agentview_depth"]
    assert policy.act(recording.at(0), BOWL).shape == (4, 7)


def test_near_its_end_a_demonstration_has_fewer_true_actions(root: Path, capsys: pytest.CaptureFixture) -> None:
    file = str(demo_file(root / "demos", TASK))
    act_on(root, "--demo", file, "--step", str(LENGTH - 3))
    assert "over 2 steps and 1 samples" in capsys.readouterr().out
    act_on(root, "--demo", file, "--step", str(LENGTH - 1))
    assert "error" not in capsys.readouterr().out
    with pytest.raises(DataError, match=rf"--step {LENGTH}: there are the steps 0 to {LENGTH - 1}"):
        act_on(root, "--demo", file, "--step", str(LENGTH))


@pytest.mark.parametrize("name", ["policy", "remembering"])
def test_a_whole_demonstration(root: Path, name: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Every two steps it is asked anew, as in a rollout."""
    file = demo_file(root / "demos", TASK)
    plot = ("--plot", str(tmp_path / "all.html"))
    act_on(root, "--demo", str(file), "--name", "demo_1", "--all", *plot, policy=name)
    policy = Policy.load(root / name, "cpu")
    recording = demonstration(file, "demo_1", policy.spec)
    policy.reset(0)
    expected = [policy.act(recording.at(step), TASK.language)[:2] for step in range(0, 9, 2)]
    found = rows(capsys.readouterr().out)
    np.testing.assert_allclose(found, np.concatenate(expected)[:9], atol=6e-5)
    act_on(root, "--demo", str(file), "--name", "demo_1", "--step", "4", policy=name)
    np.testing.assert_allclose(rows(capsys.readouterr().out)[0], _third_call(policy, recording), atol=6e-5)


def _third_call(policy: Policy, recording) -> np.ndarray:
    """Return the first action after two observations and the one of step 4, with the first noise."""
    policy.reset(0)
    for step in (0, 2):
        policy.act(recording.at(step), TASK.language)
    return policy.sample(recording.at(4), TASK.language, 1, seed=0)[0, 0]


def write_state(path: Path, seen: dict[str, np.ndarray], steps: int | None = None) -> str:
    signals = {name: x for name, x in seen.items() if name not in CAMERAS}
    if path.suffix == ".npz":
        np.savez(path, **signals)
    else:
        path.write_text(json.dumps({name: x.tolist() for name, x in signals.items()}))
    return str(path)


@pytest.mark.parametrize("state", ["state.json", "state.npz"])
def test_pictures(root: Path, state: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    seen = observation(3, (40, 60))
    files = []
    for camera in CAMERAS:
        Image.fromarray(seen[camera]).save(tmp_path / f"{camera}.png")
        files.append(f"{camera}={tmp_path / camera}.png")
    given = ["--image", *files, "--state", write_state(tmp_path / state, seen)]
    act_on(root, *given, "--instruction", BOWL)
    policy = Policy.load(root / "policy", "cpu")
    np.testing.assert_allclose(rows(capsys.readouterr().out), policy.act(seen, BOWL), atol=6e-5)
    with pytest.raises(ConfigError, match="--instruction: the files do not say what to do"):
        act_on(root, *given)
    with pytest.raises(DataError, match=r"'eye_in_hand' is missing among 'agentview', .*This policy takes agentview"):
        act_on(root, "--image", files[0], *given[3:], "--instruction", BOWL)
    with pytest.raises(DataError, match="'joint_pos' is missing"):
        act_on(root, *given[:3], "--instruction", BOWL)


def test_videos(root: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    seen = [observation(i, (32, 32)) for i in range(5)]
    files = []
    for camera in CAMERAS:
        files.append(f"{camera}={tmp_path / camera}.mkv")
        with av.open(str(tmp_path / f"{camera}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=20, options={"pix_fmt": "bgr0"})  # loses nothing
            stream.height, stream.width, stream.pix_fmt = 32, 32, "bgr0"
            for each in seen:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(each[camera], format="rgb24")))
            container.mux(stream.encode(None))
    state = {name: np.stack([each[name] for each in seen]) for name in seen[0] if name not in CAMERAS}
    given = ["--video", *files, "--state", write_state(tmp_path / "state.npz", state), "--instruction", BOWL]
    act_on(root, *given, "--step", "3")
    policy = Policy.load(root / "policy", "cpu")
    np.testing.assert_allclose(rows(capsys.readouterr().out), policy.act(seen[3], BOWL), atol=6e-5)
    one = write_state(tmp_path / "one.json", seen[0])
    with pytest.raises(DataError, match=r"joint_pos has shape \(7,\); with a video it needs a row for each frame"):
        act_on(root, *given[:3], "--state", one, "--instruction", BOWL)


def test_it_tells_what_the_policy_takes(root: Path, capsys: pytest.CaptureFixture) -> None:
    act_on(root, "--describe")
    assert json.loads(capsys.readouterr().out) == Policy.load(root / "policy", "cpu").describe()


def test_what_cannot_be_acted_on_is_told(root: Path, tmp_path: Path) -> None:
    file = demo_file(root / "demos", TASK)
    for arguments, said in (
        ([], "name one source of observations"),
        (["--demo", str(file), "--image", "agentview=a.png"], "name one source of observations"),
        (["--demo", str(file), "--plot", "chunk.png"], r"--plot chunk\.png: an HTML page is written"),
        (["--demo", str(file), "--samples", "0"], "--samples 0: at least 1"),
        (["--image", "front.png"], r"front\.png: not CAMERA=FILE"),
    ):
        with pytest.raises(ConfigError, match=said):
            act_on(root, *arguments)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    state = tmp_path / "state.json"
    state.write_text("[1, 2]")
    with h5py.File(tmp_path / "empty.hdf5", "w") as made:
        made.create_group("data")
    for arguments, said in (
        (["--demo", str(tmp_path / "nowhere.hdf5")], r"nowhere\.hdf5"),
        (["--demo", str(broken)], r"broken\.png"),
        (["--demo", str(tmp_path / "empty.hdf5")], r"empty\.hdf5: has no demo_0"),
        (["--demo", str(file), "--name", "demo_7"], "has no demo_7. Did you mean 'demo_"),
        (["--image", f"agentview={broken}"], r"broken\.png: cannot be read as a PNG or JPEG picture"),
        (["--video", f"agentview={broken}"], r"broken\.png: cannot be read as a video"),
        (["--image", f"agentview={tmp_path / 'no.png'}"], r"no\.png: cannot be read as a PNG or JPEG picture"),
    ):
        with pytest.raises(DataError, match=said):
            act_on(root, *arguments)
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, gripper=np.arange(2000.0))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "flipped.npz").write_bytes(whole.read_bytes()[:200] + bytes(400) + whole.read_bytes()[600:])
    (tmp_path / "empty.npz").touch()
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("cut.npz", "flipped.npz", "empty.npz", "deep.json"):
        with pytest.raises(DataError, match=rf"{name}: is neither JSON of names and numbers.*nor \.npz"):
            read_state(tmp_path / name)
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(DataError, match=r"sound\.mp4: cannot be read as a video \(it holds no video"):
        videos({"agentview": tmp_path / "sound.mp4"}, None)
    Image.new("1", (8200, 8200)).save(tmp_path / "bomb.png")
    Image.fromarray(observation()["agentview"]).save(tmp_path / "other.tif")
    for name, why in (("bomb.png", "it has 8200 x 8200 pixels"), ("other.tif", "cannot identify")):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: cannot be read as a PNG or JPEG picture \({why}"):
            picture(tmp_path / name)
    good = tmp_path / "good.png"
    Image.fromarray(observation()["agentview"]).save(good)
    with pytest.raises(DataError, match=r"state\.json: is neither JSON of names and numbers.*nor \.npz"):
        act_on(root, "--image", f"agentview={good}", "--state", str(state))
