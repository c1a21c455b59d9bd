"""The training stage as a user starts it: one process, two real processes, killed and started again."""

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cache.build import build
from pipeline.config import from_dict
from pipeline.errors import ConfigError, DataError
from pipeline.files import exclusive
from pipeline.libero.installation import official_picture_identity
from pipeline.policy import bundle
from pipeline.policy.settings import HeadName
from pipeline.train import checkpoint
from stages import train_flow
from tests import base
from tests.cache.synthetic import TEXT, MakeFake, make_plan
from tests.imports import ROOT

LENGTHS = (40, 30, 50, 36)
SETTINGS = {
    "embed": {"cameras": ["agentview", "eye_in_hand"]},
    "policy": {"proprio": ["joint_pos"], "condition_dim": 16, "head_width": 32, "head_layers": 2, "time_dim": 8},
    "train_flow": {"action": "action", "epochs": 6, "batch_size": 16, "val_fraction": 0.3, "warmup_steps": 0,
                   "metrics_rows": 16, "checkpoint_every_epochs": 1},
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with params.yaml and a small store, as the stages before would have left it."""
    tree = base.tree()
    for section, values in SETTINGS.items():
        tree[section].update(values)
    tree["policy"]["horizon"] = tree["policy"]["n_action_steps"] = 4
    tree["data"]["tasks"] = {"libero_spatial": None}
    tree["embed"]["encoder"]["model"] = "ViT-B-16"  # 14 x 14 patches: the store has 2 x 2 of them
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    plan = make_plan(LENGTHS)
    encoder = {**plan.identity["encoder"], **from_dict(tree).embed.encoder.identity}
    made = {"transform": "t", "sim": official_picture_identity(128), "views": 2, "encoder": encoder}
    plan = replace(plan, identity={**plan.identity, **made, "grid": {"size": 2, "layer": -1}})
    build(plan, TEXT, MakeFake(lengths=LENGTHS), tmp_path / "data/embeddings/libero_spatial.zarr", tmp_path / "work")
    return tmp_path


def change(project: Path, section: str = "train_flow", **settings: object) -> None:
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree[section].update(settings)
    (project / "params.yaml").write_text(yaml.safe_dump(tree))


def weights(project: Path, out: str = "runs/flow") -> dict[str, torch.Tensor]:
    return bundle.load(project / out / "policy").network.state_dict()


def command(*launch: str) -> list[str]:
    return [str(Path(sys.executable).parent / "accelerate"), "launch", *launch]


def start(project: Path, launch: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (project / "log").open("w") as log:
        return subprocess.Popen(
            launch, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(project: Path, launch: list[str]) -> str:
    status = start(project, launch).wait(timeout=300)
    output = (project / "log").read_text()
    assert status == 0, output[-4000:]
    return output


def newest(project: Path) -> str:
    return max((p.name for p in project.glob(".scratch/train/*/step-?????????")), default="")


def test_main_trains_and_publishes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(project)
    train_flow.main([])
    assert "runs/flow/policy" in capsys.readouterr().out
    report = json.loads((project / "runs/flow/train.json").read_text())
    assert [e["epoch"] for e in report["epochs"]] == list(range(6))
    assert {"train_loss", "val_loss", "train_action_mse", "train_action_mae", "val_action_mse"} <= set(report)
    assert report["val_straightness"] > 0
    assert report["trainable_parameters"]["total"] == sum(
        p.numel() for p in bundle.load(project / "runs/flow/policy").network.parameters()
    )
    assert len((project / "runs/flow/curves.csv").read_text().splitlines()) == 7
    spec = bundle.load_spec(project / "runs/flow/policy")
    assert spec.data["sim"] == official_picture_identity(128)
    recipe = spec.recipe
    settings = yaml.safe_load((project / "params.yaml").read_text())
    assert recipe["train_flow"]["learning_rate"] == settings["train_flow"]["learning_rate"]
    assert (recipe["train_flow"]["epochs"], recipe["train_flow"]["batch_size"], recipe["train_flow"]["seed"]) == (
        6,
        16,
        0,
    )
    assert recipe["feature_noise"] == settings["policy"]["feature_noise"]
    # 4 episodes of 2 tasks: of each task one is held out
    learnt = {"source": "scripted", "learnt": 2, "validation": 2}
    assert {name: recipe["demonstrations"][name] for name in learnt} == learnt
    assert recipe["encoder"] == {"model": "ViT-B-16", "pretrained": "seeded", "precision": "fp32"}
    assert recipe["machine"]["device"] == "cpu" and recipe["machine"]["cores"] >= 1 and recipe["machine"]["name"]
    date = datetime.fromisoformat(report["recipe"].pop("date"))
    assert date.utcoffset() == timedelta(0) and report["recipe"] == recipe
    held = bundle.load(project / "runs/flow/policy").texts
    assert spec.instructions == ("lift the bowl", "open the drawer")
    assert held is not None and held.tolist() == TEXT.tolist()
    card = (project / "runs/flow/policy/README.md").read_text()
    assert "Demonstrations: 2 (" in card and "“lift the bowl”" in card
    measured = list(csv.DictReader((project / "runs/flow/errors.csv").read_text().splitlines()))
    assert [row["epoch"] for row in measured] == [str(e["epoch"]) for e in report["epochs"] if "val_action_mse" in e]
    assert all(float(row["val_action_mse"]) > 0 for row in measured) and 1 < len(measured) < 6
    few = json.loads((project / "runs/flow/metrics.json").read_text())
    assert few == {name: report[name] for name in few} and len(few) == 6
    assert not list((project / ".scratch/train").iterdir()), "checkpoints of a finished training are gone"

    before = {p: p.read_bytes() for p in (project / "runs/flow/policy").iterdir()}
    train_flow.main(["--track"])
    assert all(p.read_bytes() == content for p, content in before.items()), "the same bytes again"


def test_augmented_views_are_learnt_from_in_memory_and_streamed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    change(project, epochs=2)
    change(project, "policy", feature_noise=0.0)  # of which other bytes would be drawn, too
    train_flow.main(["--track", "--out", "runs/plain"])
    change(project, "embed", views=2)
    change(project, "policy", augmented_views=True)
    train_flow.main(["--track", "--out", "runs/views"])
    change(project, data_mode="streaming", memory_mib=1)
    train_flow.main(["--track", "--out", "runs/streamed"])
    found = [weights(project, f"runs/{name}")["fusion.mlp.0.weight"] for name in ("plain", "views", "streamed")]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(found, 2))
    assert torch.isfinite(torch.stack(found)).all()


BOUNDED = {"standardise_actions": False}
HEADS = {"l1": {}, "l2": {}, "cvae": {}, "tokens": BOUNDED, "diffusion": {**BOUNDED, "head_network": "residual"}}


def test_no_head_is_forgotten() -> None:
    assert {*HEADS, "flow"} == set(get_args(HeadName)), "flow is what the other tests train"


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_acts(project: Path, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    change(project, "policy", head=head, **HEADS[head])
    change(project, epochs=2)
    monkeypatch.chdir(project)
    train_flow.main(["--track"])
    report = json.loads((project / "runs/flow/train.json").read_text())
    assert math.isfinite(report["val_loss"]) and report["val_action_mse"] > 0
    policy = bundle.load(project / "runs/flow/policy")
    assert policy.spec.architecture.head == head
    features = {camera: torch.randn(2, 6) for camera in policy.spec.architecture.cameras}
    actions = policy.network.act(features, torch.randn(2, 6), {"joint_pos": torch.randn(2, 7)}, torch.randn(2, 4, 7))
    assert actions.shape == (2, 4, 7) and abs(actions).max() <= 1


def test_patch_tokens_with_a_history_train_and_act(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, "embed", grid={"size": 2, "layer": -1})
    grid = {"policy.features": "grid", "policy.cameras": ["eye_in_hand"], "policy.n_obs_steps": 2}
    change(project, "comparison", policies={"patches": {**grid, "policy.token_width": 64}}, seeds=[4])
    monkeypatch.chdir(project)
    train_flow.main(["--track", "--variant", "patches", "--set", "train_flow.epochs=2", "--out", "runs/patches-4"])
    policy = bundle.load(project / "runs/patches-4/policy")
    arch = policy.spec.architecture
    assert (policy.spec.grid, arch.patches, arch.n_obs_steps, arch.image_dim) == ({"size": 2, "layer": -1}, 4, 2, 5)
    features = {"eye_in_hand": torch.randn(3, 2, 4, 5)}
    actions = policy.network.act(features, torch.randn(3, 6), {"joint_pos": torch.randn(3, 2, 7)}, torch.randn(3, 4, 7))
    assert actions.shape == (3, 4, 7)
    change(project, "policy", **{name.removeprefix("policy."): value for name, value in grid.items()}, token_width=64)
    change(project, teacher="runs/patches-4/policy", epochs=1)
    train_flow.main(["--track", "--out", "runs/reflow"])
    change(project, "policy", n_obs_steps=3)
    with pytest.raises(DataError, match=r"its n_obs_steps is 2, and 3 is needed"):
        train_flow.main(["--track", "--out", "runs/reflow"])


def test_a_flow_is_learnt_again_from_its_own_samples(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    train_flow.main(["--track"])
    change(project, teacher="runs/flow/policy", epochs=2, seed=1)
    train_flow.main(["--track", "--out", "runs/reflow"])
    assert bundle.load_spec(project / "runs/reflow/policy").data["teacher"]["sampling_steps"] == 10
    first, second = weights(project), weights(project, "runs/reflow")
    assert first.keys() == second.keys()
    moved = [float((second[k] - first[k]).abs().max()) for k in first if k.startswith("head.")]
    assert 0 < max(moved) < 0.05, "another seed, but it begins with its teacher's weights"
    with pytest.raises(DataError, match=r"runs/flow/policy: training is about to replace it"):
        train_flow.main(["--track"])
    change(project, teacher="runs/none/policy")
    with pytest.raises(DataError, match=r"runs/none/policy.policy\.json: not found"):
        train_flow.main(["--track", "--out", "runs/reflow"])


def test_tasks_that_are_held_out_are_not_learnt_from(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    train_flow.main(["--track"])
    every = json.loads((project / "runs/flow/train.json").read_text())["steps"]
    assert bundle.load_spec(project / "runs/flow/policy").data["tasks"] == {"libero_spatial": None}
    change(project, held_out_tasks={"libero_spatial": [7]})
    train_flow.main(["--track"])
    spec = bundle.load_spec(project / "runs/flow/policy")
    assert spec.data["tasks"] == {"libero_spatial": [3]}
    assert spec.instructions == ("lift the bowl",), "of what it learnt"
    assert json.loads((project / "runs/flow/train.json").read_text())["steps"] < every
    change(project, held_out_tasks={"libero_spatial": [12]})
    with pytest.raises(ConfigError, match=r"libero_spatial \[12\] must be some, not all, of data.tasks"):
        train_flow.main(["--track"])
    change(project, held_out_tasks={"libero_spatial": [3, 7]})
    with pytest.raises(DataError, match="holds out every task of libero_spatial"):
        train_flow.main(["--track"])


def test_curves_are_whole_also_after_an_interruption(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(accelerator: Accelerator, directory: Path, step: int) -> None:
        save(accelerator, directory, step)
        if len(list(directory.glob("step-*"))) == 2:
            raise Stop

    save = checkpoint.save
    monkeypatch.chdir(project)
    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(Stop):
        train_flow.main([])
    monkeypatch.setattr(checkpoint, "save", save)
    train_flow.main([])

    history = json.loads((project / "runs/flow/train.json").read_text())["epochs"]
    events = EventAccumulator(str(project / "runs/flow/tensorboard")).Reload()
    loss = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert loss == [(entry["step"], pytest.approx(entry["train_loss"])) for entry in history]
    sampled = [entry for entry in history if "val_action_mse" in entry]
    gripper = [event.value for event in events.Scalars("val_action_mse_of/gripper")]
    assert gripper == pytest.approx([entry["val_action_mse_of"]["gripper"] for entry in sampled])
    lines = (project / "runs/flow/dvclive/plots/metrics/val_loss.tsv").read_text().splitlines()
    assert [int(line.split("\t")[0]) for line in lines[1:]] == [entry["step"] for entry in history]
    assert not (project / "dvc.yaml").exists(), "DVCLive adds no stage or plot of its own"


def test_half_precision_takes_a_gpu(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    change(project, precision="fp16")
    with pytest.raises(ConfigError, match=r"precision is fp16, which takes a GPU.*Use bf16"):
        train_flow.main([])


def test_a_store_of_another_encoder_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(DataError, match=r"spatial.zarr: .*seed is 0 in the store, 1 now\. Set it back, or"):
        train_flow.main(["--set", "embed.encoder.seed=1"])
    assert not (project / "runs").exists()


def test_two_trainings_do_not_share_an_output(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with exclusive(project / "runs/flow/training.lock", "output"), pytest.raises(DataError, match="runs/flow: another"):
        train_flow.main(["--track", "--set", "train_flow.seed=7"])
    train_flow.main(["--track"])
    assert not (project / "runs/flow/training.lock").exists()


def test_a_batch_that_processes_cannot_share_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    change(project, microbatch_size=5)
    with pytest.raises(ConfigError, match="not a multiple of 1 processes"):
        train_flow.main([])


@pytest.mark.slow
def test_two_processes_train_the_same_policy_as_one(project: Path) -> None:
    one = command("--cpu", "--num_processes=1", str(ROOT / "stages/train_flow.py"), "--out", "runs/one")
    finish(project, one)
    config = str(ROOT / "configs/accelerate/cpu2.yaml")
    output = finish(project, command("--config_file", config, "-m", "stages.train_flow", "--out", "runs/two"))
    assert "device cpu x 2" in output
    assert output.count("trained ") == 1, "only the main process reports"
    for name, tensor in weights(project, "runs/one").items():
        torch.testing.assert_close(weights(project, "runs/two")[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    losses = [json.loads((project / f"runs/{n}/train.json").read_text())["train_loss"] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# Trains in children that it kills at random points of time, until there were ten kills, and then to the end. It forks,
# and computes nothing itself, because a process that has imported all takes no time to start.
KILLER = """
import os, pathlib, random, signal, sys, time
import dvclive, torch._dynamo, torch.utils.tensorboard
import pipeline.train.job
from stages import cli, train_flow

cli.setup_logging()
rng = random.Random(0)

def start(out, scratch):
    child = os.fork()
    if child == 0:
        train_flow.main(["--out", out, "--scratch", scratch])
        os._exit(0)
    return child

def newest():
    return max((p.name for p in pathlib.Path(".scratch/train").glob("*/step-?????????")), default="")

began = time.perf_counter()
assert os.waitpid(start("runs/whole", "whole"), 0)[1] == 0
whole = time.perf_counter() - began
for kill in range(10):
    before, child = newest(), start("runs/flow", ".scratch/train")
    while kill % 2 == 0 and newest() == before:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, whole / 20))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(start("runs/flow", ".scratch/train"), 0)[1] == 0
"""


def test_what_no_cuda_graph_can_hold_is_refused_before_the_store_is_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(project, cuda_graph=True)
    monkeypatch.chdir(project)
    monkeypatch.setattr("pipeline.train.job.load_stores", None)
    with pytest.raises(ConfigError, match=r"cuda_graph is true, but training is on cpu\."):
        train_flow.main([])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_killed_ten_times_and_started_again_ends_in_the_same_policy(project: Path, mode: str) -> None:
    """Every other time at any moment, else soon after a checkpoint, so that five starts surely go on from one."""
    change(project, epochs=32, data_mode=mode)
    output = finish(project, [sys.executable, "-c", KILLER])
    assert output.count("going on after epoch") >= 5
    for name, tensor in weights(project, "runs/whole").items():
        assert torch.equal(weights(project)[name], tensor), name
    histories = [json.loads((project / f"runs/{n}/train.json").read_text())["epochs"] for n in ("whole", "flow")]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_one_of_two_processes_is_killed_both_end_and_a_restart_goes_on(project: Path) -> None:
    change(project, epochs=60, data_mode="streaming")
    config = str(ROOT / "configs/accelerate/cpu2.yaml")
    launch = command("--config_file", config, "-m", "stages.train_flow")
    process = start(project, launch)
    while not newest(project):
        assert process.poll() is None, (project / "log").read_text()[-4000:]
        time.sleep(0.01)
    ranks = [child for child in descendants(process.pid) if "stages.train_flow" in command_line(child)]
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    assert "Signal 9 (SIGKILL) received" in (project / "log").read_text()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    output = finish(project, launch)
    assert "going on after epoch" in output and "device cpu x 2" in output
    history = json.loads((project / "runs/flow/train.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in history] == list(range(60))


def descendants(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in read(file).split()]
    return [*children, *(below for child in children for below in descendants(child))]


def command_line(pid: int) -> str:
    return read(Path(f"/proc/{pid}/cmdline"))


def read(file: Path) -> str:
    """Return what a file of /proc says; nothing if its process or thread has ended."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
