"""The evaluation's real main(), killed and resumed, with a policy and with a baseline."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config import Params
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.errors import ConfigError, DataError, SimulatorError
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import Origin, write_demos
from pipeline.libero.expert import Noise, attempt
from pipeline.libero.installation import picture_identity
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import tasks
from pipeline.policy.bundle import PolicySpec, save
from pipeline.policy.network import Architecture, PolicyNetwork
from pipeline.rollout import publish
from pipeline.rollout.metrics import summary
from pipeline.rollout.results import read_records
from pipeline.rollout.video import read_frames
from stages import eval_libero
from tests import base
from tests.rollout.make import record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Params:
    """The quickstart's settings, made small."""
    p = base.params()
    return replace(
        p,
        sim=replace(p.sim, image_size=32, settle_steps=2),
        eval_libero=replace(p.eval_libero, episodes=3, max_steps=9, videos_per_task=1, conditions={}),
        compute=replace(p.compute, scheduler="serial"),
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Params], list[str]]:
    """Write params.yaml; return the stage's arguments for it."""

    def to_file(params: Params) -> list[str]:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(params)))))
        return ["--params", str(path), "--scratch", str(tmp_path / "scratch")]

    return to_file


def outcome(directory: Path) -> tuple[list[dict], dict]:
    """Everything in the results that does not depend on the clock."""
    tree = json.loads((directory / "eval.json").read_text())
    del tree["timings"], tree["provenance"]
    return [r.result() for r in read_records(directory / "episodes.jsonl")], tree


@pytest.mark.sim
@pytest.mark.slow
def test_killed_on_two_workers_and_resumed_serially_it_ends_in_the_same(
    params: Params, write: Callable[[Params], list[str]], tmp_path: Path
) -> None:
    argv = [*write(params), "--agent", "random"]
    eval_libero.main([*argv, "--out", str(tmp_path / "whole")])
    expected = outcome(tmp_path / "whole")
    assert [r["episode"] for r in expected[0]] == [0, 1, 2]
    assert not list((tmp_path / "scratch").iterdir()), "finished work is not kept twice"

    write(replace(params, compute=replace(params.compute, scheduler="local", workers=2)))
    command = [sys.executable, "-m", "stages.eval_libero", *argv, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 300
    try:
        while not any(p.stat().st_size for p in (tmp_path / "scratch").glob("*/episodes.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, "it ended, or hangs, before an episode"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists(), "half a result is none"
    (journal,) = (tmp_path / "scratch").glob("*/episodes.jsonl")
    before = journal.read_text()

    write(params)
    eval_libero.main([*argv, "--out", str(tmp_path / "killed")])
    assert outcome(tmp_path / "killed") == expected
    lines = (tmp_path / "killed/episodes.jsonl").read_text()
    done = [json.loads(line) for line in before.splitlines() if line.endswith("}")]
    assert 1 <= len(done) <= 3
    for finished in done:
        kept = [json.loads(line) for line in lines.splitlines()]
        assert any(finished["seconds"] == k["seconds"] and finished["episode"] == k["episode"] for k in kept), (
            "an episode that had ended was not run again"
        )


@pytest.mark.sim
@pytest.mark.slow
def test_conditions_are_evaluated_beside_the_plain_one(
    params: Params, write: Callable[[Params], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = {"blank_cameras": None, "displaced": 0.05}
    cfg = replace(params.eval_libero, episodes=3, conditions=asked, condition_episodes=2)
    params = replace(params, eval_libero=cfg)
    out = tmp_path / "results"
    eval_libero.main([*write(params), "--agent", "random", "--out", str(out)])
    tree = json.loads((out / "eval.json").read_text())
    assert [(row["condition"], row["amount"], row["n"], row["pairs"]) for row in tree["conditions"]] == [
        ("blank_cameras", None, 2, 2),
        ("displaced", 0.05, 2, 2),
    ]
    assert "With its cameras blanked it succeeds in 0 of 2 episodes" in capsys.readouterr().out
    plain, blank, displaced = (
        read_records(out / part / "episodes.jsonl") for part in ("", "conditions/blank_cameras", "conditions/displaced")
    )
    ends = [[r.final_state for r in records] for records in (plain, blank, displaced)]
    assert len(ends[0]) == 3 and ends[0][:2] == ends[1], "random actions do not depend on what is seen"
    assert not set(ends[0]) & set(ends[2]), "objects lie elsewhere"
    videos = [r.video for r in blank if r.video]
    assert videos and all((out / "conditions/blank_cameras" / video).stat().st_size for video in videos)
    assert not list((tmp_path / "scratch").iterdir()), "finished work is not kept twice"


@pytest.mark.sim
@pytest.mark.slow
def test_the_expert_and_a_replay_of_its_demonstration_succeed(
    params: Params, write: Callable[[Params], list[str]], tmp_path: Path
) -> None:
    demos = tmp_path / "demos"
    task = tasks("libero_spatial", [0])[0]
    with Simulator(task, params.sim) as simulator:
        made = attempt(simulator, Origin(2, params.sim.seed, 0), Noise(0.2, 0.5), diversity=0.0)
    assert made.episode is not None
    write_demos(demo_file(demos, task), task, [made.episode], params.sim)

    cfg = replace(params.eval_libero, first_init_state=30, episodes=2, max_steps=None, videos_per_task=0)
    cfg = replace(cfg, conditions={"blank_cameras": None, "displaced": 0.05, "displaced+blank_cameras": 0.05})
    argv = write(replace(params, eval_libero=cfg))
    eval_libero.main([*argv, "--agent", "replay", "--demos", str(demos), "--out", str(tmp_path / "replay")])
    tree = json.loads((tmp_path / "replay/eval.json").read_text())
    assert (tree["successes"], tree["n"]) == (1, 1), "as many episodes as there are demonstrations"
    assert tree["conditions"] == [] and tree["init_states_demonstrated"] is None
    assert len(tree["protocol"]["agent"]["demonstrations"][f"{task.name}_demo.hdf5"]) == 64

    write(replace(params, eval_libero=replace(cfg, episodes=1)))
    eval_libero.main([*argv, "--agent", "expert", "--out", str(tmp_path / "expert")])
    tree = json.loads((tmp_path / "expert/eval.json").read_text())
    assert (tree["successes"], tree["n"]) == (1, 1)
    assert [(row["condition"], row["successes"], row["n"]) for row in tree["conditions"]] == [("displaced", 1, 1)]


def test_a_directory_of_something_else_is_not_replaced(
    params: Params, write: Callable[[Params], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "runs/policy").mkdir(parents=True)
    with pytest.raises(DataError, match=r"--out .*runs: holds policy, which would be lost"):
        eval_libero.main([*write(params), "--agent", "noop", "--out", str(tmp_path / "runs")])
    assert (tmp_path / "runs/policy").is_dir()


def test_a_device_that_is_not_there_is_refused(params: Params, write: Callable[[Params], list[str]]) -> None:
    for device in ("npu9", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ConfigError, match=f"device {device}: not to be used here"):
            eval_libero.main([*write(params), "--agent", "noop", "--device", device])


def test_init_states_of_demonstrations_are_known(params: Params) -> None:
    demos = replace(params.demos, source="scripted", first_init_state=10, episodes=5)
    assert eval_libero.demonstrated_rows(replace(params, demos=demos)) == range(10, 15)
    assert eval_libero.demonstrated_rows(replace(params, demos=replace(demos, source="official"))) is None


@pytest.fixture
def policy(params: Params, tmp_path: Path) -> Path:
    """An untrained policy for these settings."""
    encoder = ClipEncoder(params.embed.encoder)
    small = replace(params.policy, condition_dim=16, head_width=16, head_layers=1, time_dim=8, sampling_steps=2)
    arch = Architecture.of(small, encoder.dim, encoder.dim)
    torch.manual_seed(0)
    sim = picture_identity(params.sim)
    spec = PolicySpec(
        arch, encoder.identity, "none", None, TRANSFORM_ID, {"sim": sim, "tasks": {"libero_spatial": [3]}}, {}
    )
    save(tmp_path / "policy", PolicyNetwork(arch), spec)
    return tmp_path / "policy"


@pytest.mark.sim
@pytest.mark.slow
def test_a_policy_is_evaluated_by_the_protocol(
    params: Params,
    write: Callable[[Params], list[str]],
    policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    params = replace(params, eval_libero=replace(params.eval_libero, episodes=2, first_init_state=3))
    out = tmp_path / "results/flow"
    eval_libero.main([*write(params), "--policy", str(policy), "--out", str(out)])
    said = capsys.readouterr().out
    assert "libero_spatial: success in 0 of 2 episodes = 0.0% (95 %: 0.0% to 65.8%), 0 policy errors, 0 errors" in said
    assert str(out) in said
    tree = json.loads((out / "eval.json").read_text())
    assert (tree["suite"], tree["n"], tree["failures"], tree["success_rate"]) == ("libero_spatial", 2, 2, 0.0)
    assert tree["wilson_high"] == pytest.approx(0.658, abs=5e-4)
    assert (tree["held_out"]["tasks"], tree["held_out"]["n"]) == ([["libero_spatial", 0]], 2), "it learnt from task 3"
    assert "on tasks that it did not learn from: 0 of 2 = 0.0%" in said
    protocol = tree["protocol"]
    assert (
        protocol["agent"]["architecture"]["n_action_steps"] == 8
        and protocol["agent"]["encoder"]["pretrained"] == "seeded"
    )
    assert protocol["transform"] == TRANSFORM_ID and protocol["sim"]["render"] == "fast"
    assert protocol["tasks"] == [{"suite": "libero_spatial", "task": 0, "max_steps": 9}]
    assert protocol["simulators"][0]["gl_used"] in ("egl", "osmesa")
    records = read_records(out / "episodes.jsonl")
    assert [(r.init_row, r.steps, r.policy_calls, r.renders) for r in records] == [(3, 9, 2, 10), (4, 9, 2, 2)]
    assert read_frames(out / str(records[0].video)).shape == (10, 32, 64, 3)
    assert all(len(r.policy_ms) == 2 and min(r.policy_ms) > 0 for r in records)

    often = replace(params, eval_libero=replace(params.eval_libero, episodes=1, n_action_steps=3))
    eval_libero.main([*write(often), "--policy", str(policy), "--out", str(out)])
    assert [r.policy_calls for r in read_records(out / "episodes.jsonl")] == [3]
    assert json.loads((out / "eval.json").read_text())["protocol"]["agent"]["n_action_steps"] == 3


def test_a_policy_that_does_not_fit_is_refused_before_anything_runs(
    params: Params, write: Callable[[Params], list[str]], policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rollout.engine.map_unordered", lambda *_, **__: pytest.fail("a worker was started"))
    monkeypatch.setattr("pipeline.rollout.agent.ClipEncoder", lambda *_: pytest.fail("an encoder was made"))
    (policy / "weights.safetensors").unlink()  # policy.json is enough
    other = replace(params, sim=replace(params.sim, render="full"))
    with pytest.raises(DataError, match=r"sim\.render 'fast'"):
        eval_libero.main([*write(other), "--policy", str(policy)])
    with pytest.raises(DataError, match=r"policy\.json: not found.*dvc repro train_flow"):
        eval_libero.main([*write(params), "--policy", str(tmp_path / "nowhere")])
    encoder = params.embed.encoder
    for change, said in (
        ({"seed": 1}, "seed: 0 in the policy, 1 in the settings"),
        ({"precision": "bf16"}, "precision: 'fp32' in the policy, 'bf16' in the settings"),
        ({"model": "ViT-B-16"}, "image_size|model: 'ViT-S-32' in the policy, 'ViT-B-16' in the settings"),
        ({"pretrained": "openai"}, "pretrained: 'seeded' in the policy, 'openai' in the settings"),
        ({"model": "ViT-B-32-quickgelu"}, "activation: 'gelu' in the policy, 'quick_gelu' in the settings"),
    ):
        changed = replace(params, embed=replace(params.embed, encoder=replace(encoder, **change)))
        with pytest.raises(DataError, match=rf"another encoder's features \(.*{said}.*Set embed\.encoder as it was"):
            eval_libero.main([*write(changed), "--policy", str(policy)])
    seldom = replace(params, eval_libero=replace(params.eval_libero, n_action_steps=17))
    with pytest.raises(
        ConfigError, match=r"eval_libero\.n_action_steps is 17, but the policy gives chunks of 16 actions"
    ):
        eval_libero.main([*write(seldom), "--policy", str(policy)])
    assert not (tmp_path / "scratch").exists()


def test_nothing_but_errors_is_no_result_and_no_reason_to_repeat_it(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text("x")
    with pytest.raises(SimulatorError, match=r"all 2 episodes.*context is lost.*episodes\.failed\.jsonl"):
        publish.refuse_all_errors([record("error"), record("error", episode=1)], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["episodes.failed.jsonl"]
    publish.refuse_all_errors([record("error"), record("success", episode=1)], tmp_path)


def test_results_replace_older_ones_whole(tmp_path: Path) -> None:
    work, blind, out = tmp_path / "work", tmp_path / "blind", tmp_path / "results/flow"
    for directory in (work / "videos", blind / "videos", out / "videos", out.with_name(".flow.partial")):
        directory.mkdir(parents=True)
    (out / "videos/old.mp4").touch()
    (work / "videos/new.mp4").write_bytes(b"film")
    (blind / "videos/dark.mp4").write_bytes(b"film")
    others = {blind: ("blank_cameras", [record("failure", video="videos/dark.mp4")])}
    records = [record(video="videos/new.mp4"), record("failure", episode=1)]
    publish.publish(records, summary(records), work, out, others)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "conditions/blank_cameras/episodes.jsonl",
        "conditions/blank_cameras/videos/dark.mp4",
        "episodes.jsonl",
        "eval.json",
        "metrics.json",
        "tasks.csv",
        "videos/new.mp4",
    ]
    few = {"success_rate": 0.5, "wilson_low": 0.0945, "wilson_high": 0.9055, "n": 2, "errors": 0, "mean_steps": 100}
    assert json.loads((out / "metrics.json").read_text()) == pytest.approx(few, abs=1e-4)
    assert (out / "tasks.csv").read_text() == "task,success_rate,n\nlibero_spatial 0,0.5,2\n"
    assert not work.exists() and not blind.exists() and [p.name for p in out.parent.iterdir()] == ["flow"]
