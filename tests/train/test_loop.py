"""The loop: it learns, it is exact after an interruption, and it shares a batch without changing the update."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipeline.errors import DataError, PipelineError
from pipeline.policy import bundle
from pipeline.policy.network import PolicyNetwork
from pipeline.train import checkpoint
from pipeline.train.loop import Progress, train
from pipeline.train.settings import TrainFlow
from tests import base
from tests.disk import small_disk
from tests.train.synthetic import ARCH, table

CFG = replace(
    base.params().train_flow,
    action="action",
    keyframe_weight=0.1,
    epochs=4,
    batch_size=16,
    warmup_steps=2,
    ema_decay=0.9,
    val_fraction=0.2,
    metrics_every_epochs=2,
    metrics_rows=40,
    checkpoint_every_epochs=1,
)


def run(scratch: Path, cfg: TrainFlow = CFG) -> tuple[PolicyNetwork, Progress]:
    return train(Accelerator(cpu=True), table(), replace(ARCH, feature_noise=0.1), cfg, scratch)


def same(a: PolicyNetwork, b: PolicyNetwork) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    first, progress = run(tmp_path / "a")
    again, _ = run(tmp_path / "b")
    other, _ = run(tmp_path / "c", replace(CFG, seed=1))
    assert same(first, again)
    assert not same(first, other)
    assert [entry["epoch"] for entry in progress.history] == [0, 1, 2, 3]
    assert progress.step == 4 * 4  # 55 training rows in batches of 16
    sampled = ["train_action_mse" in entry for entry in progress.history]
    assert sampled == [True, False, True, True], "every second epoch and the last"
    last = progress.history[-1]
    assert list(last["val_action_mse_of"])[-1] == "gripper"
    assert np.mean(list(last["val_action_mse_of"].values())) == pytest.approx(last["val_action_mse"])


class Stop(Exception):
    pass


@pytest.mark.parametrize("epochs_before", [1, 3])
def test_interrupted_and_started_again_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs_before: int
) -> None:
    whole, progress = run(tmp_path / "whole")
    saved = []

    def stop_after(accelerator: Accelerator, directory: Path, step: int) -> None:
        original(accelerator, directory, step)
        saved.append(step)
        if len(saved) == epochs_before:
            raise Stop

    original = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", stop_after)
    with pytest.raises(Stop):
        run(tmp_path / "cut")
    monkeypatch.undo()
    resumed, resumed_progress = run(tmp_path / "cut")
    assert same(whole, resumed)
    losses = [[e["train_loss"] for e in p.history] for p in (progress, resumed_progress)]
    assert losses[0] == losses[1]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = run(tmp_path / "a")
    newest, older = reversed(checkpoint.checkpoints(tmp_path / "a"))
    victim = newest / "optimizer.bin"
    victim.write_bytes(victim.read_bytes()[:200])
    again, _ = run(tmp_path / "a")
    assert same(whole, again)
    assert newest.name in caplog.text and "trying the one before" in caplog.text
    for path in (newest, older):
        shutil.copytree(path, tmp_path / "b" / path.name)
        (tmp_path / "b" / path.name / "optimizer.bin").write_bytes(b"")
    with pytest.raises(PipelineError, match="none of its 2 checkpoints"):
        run(tmp_path / "b")


def test_a_restart_reads_no_statistics_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(tmp_path / "a")
    monkeypatch.setattr("pipeline.train.statistics.measure", None)
    assert same(run(tmp_path / "a")[0], whole)


def test_a_kill_while_writing_a_checkpoint_leaves_the_older_ones(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "a")
    newest = checkpoint.checkpoints(tmp_path / "a")[-1]
    newest.rename(newest.with_name(newest.name + ".partial"))
    again, _ = run(tmp_path / "a")
    assert same(whole, again)
    assert len(checkpoint.checkpoints(tmp_path / "a")) == 2


def test_a_kill_while_deleting_a_checkpoint_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(tmp_path / "a")
    newest = checkpoint.checkpoints(tmp_path / "a")[-1]

    def killed(directory: Path, **_: object) -> None:
        if directory.exists():
            (directory / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipeline.train.checkpoint.shutil.rmtree", killed)
        checkpoint.remove(newest)
    assert newest not in checkpoint.checkpoints(tmp_path / "a")
    again, _ = run(tmp_path / "a")
    assert same(whole, again)


def test_a_full_disk_leaves_the_older_checkpoints_and_training_goes_on_when_there_is_room(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    pages = sum(1 + path.stat().st_size // 4096 for path in checkpoint.checkpoints(tmp_path / "whole")[0].rglob("*"))
    with small_disk(tmp_path / "disk", kib=3 * pages * 4) as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(3 * pages * 4096 // 4))  # two checkpoints have room, a third one has not
        with pytest.raises(PipelineError, match=r"step-000000012\.partial: .* cannot be written, 0 MiB .*Make room"):
            run(disk / "run")
        assert [path.name for path in checkpoint.checkpoints(disk / "run")] == ["step-000000004", "step-000000008"]
        assert not list(disk.glob("run/*.partial"))
        filler.unlink()
        assert same(run(disk / "run")[0], whole)


def test_checkpoints_of_another_training_are_left_and_the_difference_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = {"train_flow": {"learning_rate": 3e-4, "epochs": 4}, "data": {"tasks": (0, 1)}}
    first = checkpoint.claim(tmp_path, identity)
    assert checkpoint.claim(tmp_path, identity) == first
    (first / "step-000000004").mkdir()
    changed = {"train_flow": {"learning_rate": 1e-3, "epochs": 4}, "data": {"tasks": (0, 1)}}
    assert checkpoint.claim(tmp_path, changed) != first
    assert f"{first}: has checkpoints of another training" in caplog.text
    assert "not gone on with: train_flow.learning_rate is 0.0003 there, 0.001 now. To go on" in caplog.text
    assert (first / "step-000000004").exists()


def test_accumulation_does_not_change_the_update(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "a")
    parts, _ = run(tmp_path / "b", replace(CFG, microbatch_size=4))
    for x, y in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=2e-3)


@pytest.mark.slow
def test_learns_an_action_that_its_inputs_determine(tmp_path: Path) -> None:
    cfg = replace(
        CFG, epochs=100, metrics_every_epochs=99, learning_rate=3e-3, ema_decay=0.0, checkpoint_every_epochs=100
    )
    arch = replace(ARCH, horizon=1, n_action_steps=1)
    _, progress = train(Accelerator(cpu=True), table(episodes=20), arch, cfg, tmp_path)
    first, last = progress.history[0], progress.history[-1]
    assert last["train_action_mse"] < 0.1 * first["train_action_mse"]
    assert last["val_action_mse"] < 0.3 * first["val_action_mse"], "a linear rule carries over to held-out episodes"
    assert last["train_loss"] < 0.3 * first["train_loss"]


def test_keyframes_reach_fusion_and_stay_out_of_the_bundle(tmp_path: Path) -> None:
    data = table()
    assert data.keyframes is not None
    data = replace(data, action=torch.zeros_like(data.action))
    trained, _ = train(Accelerator(cpu=True), data, ARCH, CFG, tmp_path / "a")
    batch = data.batch(torch.arange(10), ARCH.horizon)
    assert trained.keyframes is not None and batch.keyframes is not None
    condition = trained.fusion(*trained.normaliser.inputs(batch.images, batch.text, batch.proprio))
    trained.fusion.zero_grad()
    trained.keyframes.loss(condition, batch.keyframes).sum().backward()
    assert trained.fusion.mlp[0].weight.grad.abs().max() > 1e-4
    facts = ({"model": "tiny"}, "none", None, "transform-1", {}, {})
    bundle.save(tmp_path / "policy", trained, bundle.PolicySpec(ARCH, *facts))
    read = bundle.load(tmp_path / "policy").network
    assert read.keyframes is None and read.parameter_counts() == trained.parameter_counts()
    assert not any(name.startswith("keyframes.") for name in read.state_dict())


def test_keyframes_are_read_if_and_only_if_they_are_learnt_from(tmp_path: Path) -> None:
    for data, weight in ((table(), 0.0), (replace(table(), keyframes=None), 0.5)):
        with pytest.raises(ValueError, match=f"keyframe_weight is {weight}"):
            train(Accelerator(cpu=True), data, ARCH, replace(CFG, keyframe_weight=weight), tmp_path)


def test_a_diverging_network_stops_at_once_and_names_its_batch(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"not finite at step 1 \(epoch 0\).* on rows of .*demo.*Lower train_flow"):
        run(tmp_path, replace(CFG, learning_rate=float("inf")))


def test_a_feature_that_is_not_finite_is_named(tmp_path: Path) -> None:
    data = table()
    victim = data.episodes[3]
    data.images.features["agentview"][victim.first + 2, 1] = float("nan")
    with pytest.raises(DataError, match=rf"image/agentview of {victim.suite}/{victim.source}\. Check the store"):
        train(Accelerator(cpu=True), data, ARCH, CFG, tmp_path)
