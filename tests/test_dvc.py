"""What DVC is to show of a run: few figures and named plots, and those of experiments that have left the workspace."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.rollout.figures import write_figures
from pipeline.rollout.metrics import summary
from pipeline.train.publish import METRICS, as_csv
from tests.imports import ROOT
from tests.rollout.make import record

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
HISTORY = [
    {"epoch": e, "train_loss": 2 / (1 + e), "val_loss": 2.0, "train_action_mse": 0.5, "val_action_mse": 0.4}
    for e in range(3)
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with this pipeline and what its stages write of it."""
    results, runs = tmp_path / "results/flow", tmp_path / "runs/flow"
    results.mkdir(parents=True)
    runs.mkdir(parents=True)
    write_figures(results, summary([record(), record("failure", 1, 1)]))
    (runs / "metrics.json").write_text(json.dumps(dict.fromkeys(METRICS, 0.5)))
    for name in ("curves.csv", "errors.csv"):
        (runs / name).write_text(as_csv(HISTORY))
    for name in ("dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots/per_task.json", ".dvcignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def dvc(project: Path, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments, "--json"], cwd=project, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_metrics_are_few(project: Path) -> None:
    shown = dvc(project, "metrics", "show")[""]["data"]
    few = {"success_rate": 0.5, "wilson_low": 0.0945, "wilson_high": 0.9055, "n": 2, "errors": 0, "mean_steps": 100}
    assert shown["results/flow/metrics.json"]["data"] == pytest.approx(few, abs=1e-4)
    assert set(shown["runs/flow/metrics.json"]["data"]) == set(METRICS)


def test_plots_are_drawn_of_what_the_stages_write(project: Path) -> None:
    shown = dvc(project, "plots", "show", "--out", "plots")
    assert not shown.get("errors") and set(shown["data"]) == {"Loss", "Action error", "Success per task"}
    text = {name: json.dumps(plots[0]["content"]) for name, plots in shown["data"].items()}
    assert "train_loss" in text["Loss"] and "val_action_mse" in text["Action error"]
    assert "libero_spatial 1" in text["Success per task"] and "[0, 1]" in text["Success per task"]


def test_what_git_ignores_is_in_the_cache() -> None:
    """With `cache: false` metrics and plots below results/ are lost with the workspace: `dvc exp show` has none."""
    for name, stage in PIPELINE["stages"].items():
        for out in (*stage["outs"], *stage.get("metrics", ())):
            assert isinstance(out, str), f"dvc.yaml, stage {name}: {out}"


def test_plots_are_of_outputs_and_columns_that_exist(project: Path) -> None:
    outs = {out for stage in PIPELINE["stages"].values() for out in stage["outs"]}
    for entry in PIPELINE["plots"]:
        for title, plot in entry.items():
            for file, columns in plot["y"].items():
                assert file in outs, title
                head = next(csv.reader((project / file).read_text().splitlines()))
                assert {plot["x"], *([columns] if isinstance(columns, str) else columns)} <= set(head), title
