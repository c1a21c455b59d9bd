"""`experiment=libero_spatial` from end to end on files in the official layouts, as a user with a network runs it."""

import json
import sys
from pathlib import Path

import h5py
import pytest
from safetensors.torch import save_file

from cache import open_store
from pipeline.config.compose import compose
from pipeline.encode.settings import EncoderParams
from pipeline.encode.weights import load_model
from pipeline.libero.demos.read import demo_file
from pipeline.libero.demos.write import write_demos
from pipeline.libero.installation import own_digest
from pipeline.libero.suites import Task, tasks
from tests.imports import ROOT
from tests.libero.synthetic import SIM, make_episode
from tests.stages.test_train_flow import command, finish

SUITE = "libero_spatial"
MODEL = "ViT-B-16-quickgelu"
SMALL = [
    f"data.tasks.{SUITE}=[0]",
    "compute=serial",
    "train_flow.epochs=1",
    "train_flow.batch_size=8",
    "train_flow.metrics_rows=8",
    "eval_libero.episodes=1",
    "eval_libero.max_steps=6",
]


def official(root: Path, task: Task) -> None:
    """Write demonstrations as LIBERO's own: none of what only scripted ones have."""
    write_demos(demo_file(root, task), task, [make_episode(8 + i, i, size=128) for i in range(2)], SIM)
    with h5py.File(demo_file(root, task), "r+") as file:
        del file["data"].attrs["sim"]
        for demo in file["data"].values():
            del demo["expert_actions"], demo["obs/ee_wrench"], demo.attrs["origin"]


@pytest.mark.sim
@pytest.mark.slow
def test_it_runs_on_local_files(tmp_path: Path) -> None:
    (task,) = tasks(SUITE, [0])
    official(tmp_path / "own", task)
    weights = tmp_path / "clip.safetensors"
    save_file(load_model(EncoderParams(MODEL, "seeded", 0, "fp32")).state_dict(), weights, {"activation": "quick_gelu"})
    local = [
        "experiment=libero_spatial",
        "demos=path",
        f"demos.path={tmp_path / 'own'}",
        f"embed.encoder.pretrained={weights}",
    ]
    text = compose([*local, *SMALL], ROOT / "configs")
    (tmp_path / "params.yaml").write_text(text)
    # Each in a process of its own: Accelerate keeps one to a precision, and ViT-B/16 would stay in this one's memory.
    stage = [sys.executable, "-m"]
    finish(tmp_path, [*stage, "stages.demos"])
    finish(tmp_path, [*stage, "stages.embed"])
    finish(tmp_path, command("-m", "stages.train_flow"))
    finish(tmp_path, [*stage, "stages.eval_libero"])
    finish(tmp_path, [*stage, "stages.report"])

    store = open_store(tmp_path / f"data/embeddings/{SUITE}.zarr")
    assert store.identity["encoder"]["model"] == MODEL
    assert store.layout("grid/eye_in_hand").row_shape == (1, 49, 768)
    assert store.rows == 7 + 8, "an observation less than actions"
    spec = json.loads((tmp_path / "runs/flow/policy/policy.json").read_text())
    assert (spec["architecture"]["n_obs_steps"], spec["architecture"]["head_network"]) == (2, "residual")
    result = json.loads((tmp_path / "results/flow/eval.json").read_text())
    assert (result["n"], result["errors"]) == (1, 0)
    used = result["protocol"]["simulators"][0]
    assert (used["assets_digest"], used["render"]) == (own_digest(), "full")
    assert (tmp_path / "results/report.html").is_file()
