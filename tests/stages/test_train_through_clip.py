"""Training from raw frames through a small CLIP: the real stages, LoRA and whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cache import open_store
from pipeline.config import load
from pipeline.encode.weights import load_model
from pipeline.errors import ConfigError, DataError
from pipeline.libero.demos.read import read, scan
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import tasks
from pipeline.policy import bundle
from pipeline.rollout.agent import PolicyAgent
from pipeline.train import finetune
from stages import embed, train_flow
from tests.encode import tiny
from tests.stages.embedding import SUITE, TASKS, arguments, demonstrations

SMALL = {"proprio": ["joint_pos"], "condition_dim": 16, "head_width": 32, "head_layers": 2, "time_dim": 8}
SHORT = {
    "epochs": 2,
    "batch_size": 32,
    "val_fraction": 0.3,
    "warmup_steps": 0,
    "learning_rate": 3e-3,
    "metrics_rows": 16,
    "ema_decay": 0.0,
}
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations and a store."""
    folder = tmp_path_factory.mktemp("tune")
    demonstrations(folder)
    embed.main(arguments(folder, folder))
    return folder


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Train:
    """Train with these settings of train_flow.encoder; return where the run is."""

    def run(name: str, demos: Path | None = None, epochs: int = 2, **encoder: object) -> Path:
        tree = yaml.safe_load((base / "params.yaml").read_text())
        tree["policy"].update(SMALL)
        tree["train_flow"].update(SHORT, epochs=epochs)
        tree["train_flow"]["encoder"].update(encoder)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
        paths = {
            "--params": tmp_path / "params.yaml",
            "--embeddings": base / "out",
            "--demos": demos or base / "demos",
            "--out": tmp_path / name,
            "--scratch": tmp_path / "scratch",
        }
        train_flow.main([str(word) for pair in paths.items() for word in pair])
        return tmp_path / name

    return run


def losses(run: Path) -> list[float]:
    return [entry["train_loss"] for entry in json.loads((run / "train.json").read_text())["epochs"]]


def test_a_tower_that_does_not_move_trains_the_policy_of_the_cached_features(train: Train) -> None:
    cached = train("cached")
    still = train("still", tune="lora", learning_rate=0.0)
    assert losses(still) == pytest.approx(losses(cached), rel=2e-3)  # cached features are rounded to half precision
    a, b = (bundle.load(run / "policy").network.state_dict() for run in (cached, still))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=3e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_tower_learns_and_the_rollout_sees_through_it(train: Train, base: Path, tune: str) -> None:
    run = train(tune, epochs=8, tune=tune, learning_rate=3e-3, lora_rank=2, gradient_checkpointing=True)
    assert losses(run)[-1] < 0.99 * losses(run)[0]
    assert sorted(path.name for path in (run / "policy").iterdir()) == [
        "README.md",
        "encoder.safetensors",
        "policy.json",
        "text.safetensors",
        "weights.safetensors",
    ]
    counts = json.loads((run / "train.json").read_text())["trainable_parameters"]
    visual = load_model(tiny.PARAMS).visual.state_dict()
    tuned = load_file(run / "policy" / "encoder.safetensors")
    assert set(tuned) == set(visual)
    moved = {name for name in tuned if not torch.equal(tuned[name], visual[name])}
    whole = sum(weights.numel() for weights in visual.values())
    if tune == "full":
        assert counts["encoder"] == whole and len(moved) > 0.9 * len(visual)
    else:
        assert 0 < counts["encoder"] < 0.5 * whole
        assert moved and all("resblocks" in name and "weight" in name for name in moved)

    params = load(base / "params.yaml")
    agent = PolicyAgent.load(run / "policy", params.embed.encoder, replace(params.sim, image_size=tiny.SIM.image_size))
    task = tasks(SUITE, TASKS)[0]
    raw = read(scan(base / "demos", SUITE, [task])[0][0], ("agentview", "eye_in_hand"))
    images = {camera: frames[3] for camera, frames in raw["images"].items()}
    look = Observation(raw["joint_pos"][3], raw["ee_pose"][3], raw["gripper"][3], raw["ee_wrench"][3], images)
    agent.reset(task, 0)
    seen = agent.act(look)
    agent.policy.encoder.replace_tower(visual)
    agent.reset(task, 0)
    assert not np.allclose(seen, agent.act(look), atol=1e-4), "the tuned tower was in use"


def test_frames_that_do_not_fit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "MIB", 100)
    with pytest.raises(ConfigError, match=r"train_flow.memory_mib is 4096, the frames take 7741 MiB. Raise it"):
        train("big", tune="full")


def test_frames_that_are_not_those_that_were_embedded(train: Train, base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for task in tasks(SUITE, TASKS):
        tiny.demonstrations(other, task, [20, 33, 2, 61])
    source = open_store(base / "out" / f"{SUITE}.zarr").episodes.source[0]
    with h5py.File(other / SUITE / source.split("/")[0], "r+") as file:
        file[f"data/{source.split('/')[1]}/obs/agentview_rgb"][0] += 1
    with pytest.raises(DataError, match=r"demo_0: is not what was embedded. Embed again"):
        train("other", demos=other, tune="full")
