"""The page of demonstrations: what it says is what the files hold."""

import base64
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import write_demos
from pipeline.libero.suites import tasks
from pipeline.report.charts import linear
from pipeline.rollout.video import read_frames
from stages import dataset
from tests.libero.synthetic import SIM, make_episode
from tests.stages.browser import CHROMIUM, Page, drawn

PARAMS = Path(__file__).parents[2] / "params.yaml"
TASK = tasks("libero_spatial", [0])[0]
LENGTHS = (30, 20, 24, 50, 40)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("viewed")
    path = demo_file(root / "data/demos", TASK)
    episodes = [make_episode(length, seed) for seed, length in enumerate((*LENGTHS, 10))]
    for seed, episode in enumerate(episodes):
        for frames in episode.images.values():
            frames[:] = 0
            frames[:, :8] = 40 * (seed + 1)  # its upper half tells which it is, and which way is up
    write_demos(path, TASK, episodes, SIM)
    with h5py.File(path, "r+") as file:
        file["data/demo_5/actions"][3, 1] = 1.5
    return root


@pytest.fixture
def html(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(project)
    dataset.main(["--params", str(PARAMS), "libero_spatial"])
    return Path("results/libero_spatial_demos.html").read_text()


def test_it_says_what_is_there_and_what_is_left_out(html: str) -> None:
    says = Page(html).says()
    assert "5 demonstrations of 1 task, 164 steps at 20 Hz, 1 left out" in says
    assert f"0{TASK.language}5203050" in says, "demonstrations, shortest, median, longest"
    assert "demo_5actions reaches 1.5; the range is [-1, 1]" in says
    actions = np.concatenate([make_episode(n, seed).actions for seed, n in enumerate(LENGTHS)])
    assert f"mean {actions[:, 0].mean():.3f}, std {actions[:, 0].std():.3f}" in says
    opened = (actions[:, 6] < 0).sum()
    assert f"gripper: 164 values from -1 to 1; most, {max(opened, 164 - opened)}" in says


def test_it_shows_the_shortest_the_median_and_the_longest_upright(html: str) -> None:
    clips = [base64.b64decode(text) for text in re.findall(r'<video src="data:video/mp4;base64,([^"]*)"', html)]
    shown = [read_frames(clip) for clip in clips]
    assert [len(frames) for frames in shown] == [20, 30, 50]
    for frames, grey in zip(shown, (80, 40, 160), strict=True):
        assert frames.shape[1:] == (16, 32, 3), "both cameras, side by side"
        assert abs(frames[:, :7].mean() - grey) < 8 and frames[:, 9:].mean() < 8
    assert Page(html).all("video")[0]["aria-label"] == "2 cameras in demo_1: 20 steps, 1.0 s"


def test_curves_pass_through_the_actions(html: str) -> None:
    """The first chart's first line: dx of the demonstration of median length, from -1 at the bottom to 1 at the top."""
    points = re.search(r'<polyline points="([^"]*)"', html)
    assert points is not None
    places = np.array([[float(x) for x in point.split(",")] for point in points[1].split()])
    action = make_episode(30, 0).actions[:, 0]
    top, bottom = 12, 240
    np.testing.assert_allclose(places[:, 1], bottom - (action + 1) / 2 * (bottom - top), atol=0.06)
    assert (np.diff(places[:, 0]) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 0), (-3.5, -3.5), (-1, 1), (1.23, 1.89745), (-7, 438978), (0, 1e-3)])
def test_axes_have_round_ticks_around_what_they_hold(low: float, high: float) -> None:
    axis = linear(low, high)
    assert 3 <= len(axis.ticks) <= 8 and axis.ticks[0][0] <= low <= high <= axis.ticks[-1][0]
    assert all(len(name) <= 7 for _, name in axis.ticks), "they fit beside the axis"
    assert [float(name) for _, name in axis.ticks] == pytest.approx([value for value, _ in axis.ticks])
    assert [axis.share(value) for value, _ in axis.ticks] == pytest.approx(np.linspace(0, 1, len(axis.ticks)))


def test_a_force_that_never_changes_is_drawn(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "still")
    with h5py.File(demo_file(tmp_path / "still/data/demos", TASK), "r+") as file:
        for demo in file["data"].values():
            demo["obs/ee_wrench"][:] = 0
    monkeypatch.chdir(tmp_path / "still")
    dataset.main(["--params", str(PARAMS), "libero_spatial"])
    assert "Force at the wrist" in Path("results/libero_spatial_demos.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_draws_it(html: str, tmp_path: Path, width: int) -> None:
    assert drawn(html, tmp_path, width) == {
        "inner": width,
        "over": 0,
        "drawn": True,
        "images": True,
        "videos": [True] * 3,
        "violations": [],
    }


def test_demonstrations_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"libero_spatial task 0\. .*demos\.source"):
        dataset.main(["--params", str(PARAMS), "libero_spatial"])
