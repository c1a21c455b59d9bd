"""The project's own CLIP from the simulator to its use, by the real stages, on few pictures and with two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.encode import own
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.settings import EncoderParams
from stages.scenes import main as scenes
from tests import base
from tests.imports import ROOT

pytestmark = [pytest.mark.sim, pytest.mark.slow]
PICTURES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings for two units of pictures to learn from and one held out, and four steps."""
    folder = tmp_path_factory.mktemp("own_clip")
    tree = base.tree()
    tree["scenes"] |= {"units": 2, "held_out_units": 1, "held_out_scenes": []}
    tree["pretrain_clip"] |= {"steps": 4, "batch_size": 8, "evaluate_every": 2, "warmup_steps": 1}
    tree["compute"] = {"scheduler": "serial", "workers": None, "threads_per_worker": 1, "tls": None}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return folder


def places(folder: Path, **paths: str) -> list[str]:
    given = {"params": "params.yaml", **paths}
    return [word for name, path in given.items() for word in (f"--{name}", str(folder / path))]


def pretrain(folder: Path, out: str, *changes: str, scenes: str = "scenes.zarr") -> subprocess.CompletedProcess[str]:
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu2.yaml")]
    argv = places(folder, scenes=scenes, out=out, scratch="scratch")
    argv += [word for change in changes for word in ("--set", change)]
    return subprocess.run(
        [sys.executable, *launch, "-m", "stages.pretrain_clip", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_from_scenes_to_an_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("record", "job", "store"):
        monkeypatch.setattr(f"pipeline.scenes.{module}.PICTURES", PICTURES)
    monkeypatch.setattr("pipeline.scenes.store.CHUNK_ROWS", PICTURES)
    take = places(folder, out="scenes.zarr", scratch="scratch")
    scenes(take)
    assert f"{3 * PICTURES} pictures by each camera" in capsys.readouterr().out
    scenes(take)
    assert "up to date" in capsys.readouterr().out

    refused = pretrain(folder, "clip", "pretrain_clip.batch_size=9")
    assert refused.returncode == 1 and "pretrain_clip.batch_size is 9, which 2 processes" in refused.stderr
    made = pretrain(folder, "clip")
    assert made.returncode == 0, made.stderr[-4000:]
    assert "step 4" in made.stdout
    again = pretrain(folder, "again")
    assert again.returncode == 0, again.stderr[-4000:]
    weights = [folder / name / own.WEIGHTS.name for name in ("clip", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes(), "two processes make the same each time"
    encoder = ClipEncoder(EncoderParams(own.MODEL, str(weights[0]), 0, "fp32"))
    assert encoder.text(["pick up the black bowl"]).shape == (1, encoder.dim)


def test_without_pictures_it_says_how_to_take_them(folder: Path) -> None:
    refused = pretrain(folder, "clip", "pretrain_clip.steps=1", scenes="nothing.zarr")
    assert refused.returncode == 1
    assert "nothing.zarr: no pictures of scenes there. Take the pictures: python -m stages.scenes" in refused.stderr
