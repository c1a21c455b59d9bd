"""The stage through its real main(): three sources, clear errors, and a kill at any time."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from pipeline.errors import AssetError, DataError
from pipeline.files import exclusive
from pipeline.libero.demos import download
from pipeline.libero.demos.layout import demo_file
from pipeline.libero.demos.read import read, scan
from pipeline.libero.demos.write import write_demos
from pipeline.libero.suites import Task, tasks
from stages import demos
from tests import base
from tests.libero.synthetic import SIM, make_episode

ROOT = Path(__file__).parents[2]
SUITE = "libero_spatial"


def settings(directory: Path, ids: list[int], **sections: dict[str, Any]) -> list[str]:
    """Write a variant of params.yaml; return the stage's arguments, with outputs below `directory`."""
    params = base.tree()
    params["data"] = {"suites": [SUITE], "tasks": {SUITE: ids}}
    params["compute"]["scheduler"] = "serial"
    params["train_flow"]["action"] = "action"
    for section, values in sections.items():
        params[section].update(values)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.yaml").write_text(yaml.safe_dump(params))
    out, scratch = directory / "data", directory / "scratch"
    return ["--params", str(directory / "params.yaml"), "--out", str(out), "--scratch", str(scratch)]


def mine(root: Path, ids: tuple[int, ...] = (0, 1)) -> tuple[Task, ...]:
    """Write somebody's own files, four demos each."""
    chosen = tasks(SUITE, ids)
    for task in chosen:
        write_demos(demo_file(root, task), task, [make_episode(5 + i, i) for i in range(4)], SIM)
    return chosen


def test_path_links_and_lists_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    chosen = mine(own)
    with h5py.File(demo_file(own, chosen[1]), "r+") as file:
        file["data/demo_2/actions"][0, 0] = 3
    before = demo_file(own, chosen[0]).read_bytes()
    argv = settings(tmp_path, [0, 1], demos={"source": "path", "path": str(own)})
    demos.main(argv)
    out = capsys.readouterr().out
    assert "7 demonstrations" in out
    assert f"left out {chosen[1].name}_demo.hdf5 demo_2: actions reaches 3" in out
    root = tmp_path / "data"
    assert demo_file(root, chosen[0]).is_symlink()
    found, quarantine = scan(root, SUITE, chosen)
    assert (len(found), len(quarantine)) == (7, 1)
    assert len(read(found[0], ("agentview",))["images"]["agentview"]) == 5
    index = json.loads((root / SUITE / "index.json").read_text())
    assert (index["source"], index["demos"], index["tasks"][1]["demos"]) == ("path", 7, 3)
    assert index["tasks"][0]["language"].startswith("pick up the black bowl between")
    assert index["quarantine"][0]["demo"] == "demo_2"
    assert index["obs_shift"] == {"1": 0, "0": 0, "None": 7}, "nothing moves in these: it cannot be measured"
    assert json.loads((root / f"{SUITE}.provenance.json").read_text())["demos"]["path"] == str(own)
    assert demo_file(own, chosen[0]).read_bytes() == before

    demos.main(argv)  # again, over what is there
    assert json.loads((root / SUITE / "index.json").read_text()) == index
    demos.main([*argv, "--list"])
    listing = capsys.readouterr().out
    assert "4 demonstrations, 26 frames" in listing and "1 left out" in listing
    assert demo_file(own, chosen[0]).read_bytes() == before


def test_path_without_a_file_leaves_the_old_result(tmp_path: Path) -> None:
    own = tmp_path / "own"
    chosen = mine(own)
    argv = settings(tmp_path, [0, 1], demos={"source": "path", "path": str(own)})
    demos.main(argv)
    demo_file(own, chosen[1]).unlink()
    with pytest.raises(
        DataError, match=rf"{chosen[1].name}_demo.hdf5 is not there. demos.path must .* docs/demonstrations.md"
    ):
        demos.main(argv)
    assert (tmp_path / "data" / SUITE / "index.json").exists()
    demo_file(own, chosen[1]).write_bytes(demo_file(own, chosen[0]).read_bytes()[:5000])
    with pytest.raises(
        DataError, match=rf"task 1 has no usable demonstration: {demo_file(own, chosen[1])}: .*truncated"
    ):
        demos.main(argv)
    demo_file(own, chosen[1]).unlink()
    demo_file(own, chosen[1]).mkdir()
    with pytest.raises(DataError, match=rf"{chosen[1].name}_demo.hdf5 is a directory, not a file"):
        demos.main(argv)


def test_files_of_another_layout_are_named_once_with_all_they_lack(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (task,) = mine(own, (0,))
    with h5py.File(demo_file(own, task), "r+") as file:
        for demo in file["data"].values():
            del demo["obs/joint_states"], demo["obs/gripper_states"]
    text = f"{demo_file(own, task)}: each of its 4 demonstrations lacks obs/joint_states, obs/gripper_states. "
    with pytest.raises(DataError, match=rf"{text}.*docs/demonstrations.md"):
        demos.main(settings(tmp_path, [0], demos={"source": "path", "path": str(own)}))


def test_a_suite_that_the_expert_cannot_solve_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    argv = settings(tmp_path, [0], demos={"source": "scripted"})
    with pytest.raises(DataError, match=r"cannot solve libero_goal.* Set demos.source to 'official' .* or 'path'"):
        demos.main([*argv, "--suite", "libero_goal"])


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    chosen = mine(tmp_path / "data")  # where the stage is to write
    before = {path: path.read_bytes() for path in (tmp_path / "data" / SUITE).iterdir()}
    with pytest.raises(DataError, match=r"holds files that this stage did not write \(there is no index.json\)"):
        demos.main(settings(tmp_path, [0, 1], demos={"source": "path", "path": str(tmp_path / "data")}))
    with pytest.raises(DataError, match="holds files that this stage did not write"):
        demos.main(settings(tmp_path, [0, 1], demos={"source": "scripted"}))
    (tmp_path / "data" / SUITE / "index.json").write_text("{}")
    with pytest.raises(DataError, match=rf"{chosen[0].name}_demo.hdf5: lies in .*about to replace"):
        demos.main(settings(tmp_path, [0, 1], demos={"source": "path", "path": str(tmp_path / "data")}))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_two_recordings_of_a_suite_are_not_made_at_once(tmp_path: Path) -> None:
    argv = settings(tmp_path, [0])
    with (
        exclusive(tmp_path / "scratch" / f"{SUITE}.lock", "recording"),
        pytest.raises(DataError, match="another process is at this very recording"),
    ):
        demos.main(argv)


def test_unknown_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'libero_spacial'.*Did you mean 'libero_spatial'"):
        demos.main([*settings(tmp_path, [0]), "--suite", "libero_spacial"])


def test_official_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AssetError, match=r"(?s)'official'.*_demo\.hdf5.*hf download.*'path'.*'scripted'"):
        demos.main(settings(tmp_path, [0], demos={"source": "official"}, sim={"render": "full"}))
    assert not (tmp_path / "data").exists()


def test_official_files_are_those_of_one_commit_and_undamaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = mine(tmp_path / "hub", (0,))
    content = demo_file(tmp_path / "hub", task).read_bytes()
    repository = tmp_path / "cache" / f"datasets--{download.REPOSITORY.replace('/', '--')}"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    name = repository / "snapshots" / download.REVISION / SUITE / demo_file(tmp_path, task).name
    for folder in (blob.parent, name.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(content)
    name.symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    argv = settings(tmp_path, [0], demos={"source": "official"}, sim={"render": "full"})
    demos.main(argv)
    record = json.loads((tmp_path / "data" / f"{SUITE}.provenance.json").read_text())
    assert record["hub"] == {"repository": download.REPOSITORY, "commit": download.REVISION}
    assert demo_file(tmp_path / "data", task).readlink() == name
    blob.write_bytes(content[:-1] + b"x")
    with pytest.raises(AssetError, match=rf"{blob} is damaged: its SHA-256 is .*Delete it"):
        demos.main(argv)


@pytest.mark.sim
@pytest.mark.slow
def test_scripted_killed_and_repeated_gives_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = {
        "demos": {"source": "scripted", "episodes": 2, "first_init_state": 20, "noise_sigma": 0.1},
        "sim": {"assets_path": None, "render": "fast", "image_size": 32},
    }
    demos.main(settings(tmp_path / "whole", [0], **small))
    argv = settings(tmp_path / "killed", [0], **small)
    process = subprocess.Popen([sys.executable, "-m", "stages.demos", *argv], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (parts := list((tmp_path / "killed" / "scratch").rglob("*.npz"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "data").exists()
    assert len(parts) == 1
    demos.main(argv)
    took = json.loads((tmp_path / "killed" / "data" / f"{SUITE}.provenance.json").read_text())["took"]
    assert took["episodes"] == 1
    names = sorted(path.name for path in (tmp_path / "whole" / "data" / SUITE).iterdir())
    assert names == ["index.json", f"{tasks(SUITE, [0])[0].name}_demo.hdf5"]
    for name in names:
        one, other = (tmp_path / run / "data" / SUITE / name for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), name
    found, quarantine = scan(tmp_path / "whole" / "data", SUITE, tasks(SUITE, [0]))
    assert (len(found), quarantine) == (2, [])
    assert not list((tmp_path / "killed" / "scratch").iterdir())
    before = (tmp_path / "killed/data" / SUITE / names[1]).stat().st_mtime_ns
    capsys.readouterr()
    demos.main(argv)
    assert "up to date" in capsys.readouterr().out
    assert (tmp_path / "killed/data" / SUITE / names[1]).stat().st_mtime_ns == before
    (tmp_path / "killed/data" / f"{SUITE}.provenance.json").unlink()  # as DVC leaves it, from its cache
    demos.main(argv)
    assert "up to date" in capsys.readouterr().out
    demos.main(settings(tmp_path / "killed", [0], **{**small, "demos": {**small["demos"], "episodes": 1}}))
    assert json.loads((tmp_path / "killed/data" / SUITE / "index.json").read_text())["demos"] == 1
