"""The whole pipeline by `dvc repro` on a tiny configuration, in a copy of the checkout, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

TINY = [
    "demos.episodes=2",
    "demos.noise_sigma=0.0",
    "demos.depth=true",
    "embed.cameras=[agentview,eye_in_hand,eye_in_hand_depth]",
    "train_flow.epochs=2",
    "train_flow.metrics_rows=32",
    "eval_libero.episodes=2",
    "eval_libero.max_steps=24",
]
INPUTS = "policy.cameras: [agentview, eye_in_hand_depth], policy.proprio: [joint_pos, ee_wrench]"
ONE_MORE = [
    f"+comparison.policies.l1={{policy.head: l1, train_flow.keyframe_weight: 0.5, {INPUTS}}}",
    "comparison.seeds=[3]",
    "comparison.against=[l1-3]",
]
SECONDS = 540


def run(cwd: Path, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=SECONDS)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{output[-6000:]}"
    return output


def compose(checkout: Path, *overrides: str) -> None:
    run(checkout, sys.executable, "-m", "pipeline.config", "compose", *TINY, *overrides)


def make_repro(checkout: Path) -> str:
    """Run `make repro` with the environment that runs this test, instead of setting another one up."""
    venv = Path(sys.prefix)
    return run(checkout, "make", "-o", "system", "-o", str(venv / ".ready"), "repro", f"VENV={venv}")


def ran(output: str) -> set[str]:
    """Return the names of the stages that `dvc repro` ran, or would run, in this output."""
    lines = [line for line in output.splitlines() if line.startswith("Running stage '")]
    return {line.split("'")[1].split("@")[0] for line in lines}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of the files as they are now, with nothing built."""
    target = tmp_path_factory.mktemp("checkout")
    files = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    run(target, "git", "init", "-q")
    run(target, "git", "add", "-A")
    run(target, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "copy")
    return target


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.smoke
@pytest.mark.timeout(900)
def test_repro_runs_once_and_again_only_what_changed(checkout: Path) -> None:
    compose(checkout)
    output = make_repro(checkout)
    assert ran(output) == {"demos", "embed", "train_flow", "export_onnx", "eval_libero", "report"}
    assert "success in" in output and "results/report.html" in output, "the result and where the report lies"
    result = json.loads((checkout / "results/flow/eval.json").read_text())
    assert result["n"] + result["errors"] == 2 and result["errors"] == 0
    assert 0 <= result["wilson_low"] <= result["success_rate"] <= result["wilson_high"] <= 1
    history = json.loads((checkout / "runs/flow/train.json").read_text())
    assert [entry["epoch"] for entry in history["epochs"]] == [0, 1]
    assert "<html" in (checkout / "results/report.html").read_text()[:2000]
    published = sorted(p.name for p in (checkout / "runs/flow/policy").iterdir())
    assert published == ["README.md", "policy.json", "text.safetensors", "weights.safetensors"]
    assert (checkout / "runs/flow/onnx/policy.onnx").is_file()

    store = "data/embeddings/libero_spatial.zarr"
    assert "libero_spatial" in run(checkout, sys.executable, "-m", "cache", "info", store)
    run(checkout, sys.executable, "-m", "cache", "verify", store)

    assert ran(run(checkout, "dvc", "repro")) == set(), "a second repro runs nothing"

    compose(checkout, "train_flow.epochs=1")
    assert ran(run(checkout, "dvc", "repro")) == {"train_flow", "export_onnx", "eval_libero", "report"}

    compose(checkout, "train_flow.epochs=1", "eval_libero.conditions={}", *ONE_MORE)
    assert ran(run(checkout, "dvc", "repro", "compare")) == {"train_variant", "eval_variant", "compare"}
    (row,) = json.loads((checkout / "results/against-l1-3.json").read_text())["rows"]
    assert (row["name"], row["head"], row["n"]) == ("l1-3", "l1", 2)
    built = json.loads((checkout / "runs/l1-3/policy/policy.json").read_text())["architecture"]
    assert (built["cameras"], built["proprio"]) == (["agentview", "eye_in_hand_depth"], ["joint_pos", "ee_wrench"])
    trained = json.loads((checkout / "runs/l1-3/train.json").read_text())["provenance"]["argv"]
    assert "train_flow.seed=3" in trained

    compose(checkout, "train_flow.epochs=1", "policy.head_width=64")
    would_run = ran(run(checkout, "dvc", "repro", "--dry"))
    assert "train_flow" in would_run and not would_run & {"demos", "embed"}

    compose(checkout, "train_flow.epochs=1", "embed.encoder.seed=1")
    would_run = ran(run(checkout, "dvc", "repro", "--dry"))
    assert "embed" in would_run and "demos" not in would_run
