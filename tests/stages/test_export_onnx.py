"""The export stage as a user starts it."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from pipeline.encode.weights import load_model
from pipeline.errors import DataError
from pipeline.inference import manifest
from pipeline.inference.runtime import OnnxPolicy
from pipeline.policy.bundle import weights_digest
from stages import cli, export_onnx
from tests import base
from tests.encode import tiny
from tests.inference import exports

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with params.yaml and a policy, as training leaves it."""
    tiny.register(tmp_path)
    tree = base.tree()
    tree["embed"]["encoder"].update(model=tiny.MODEL, precision="fp32")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    exports.policy(exports.encoder(exports.GRID), tmp_path / "runs/flow/policy", exports.GRID)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_trained_policy_is_exported(
    project: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cli.setup_logging()
    export_onnx.main(["--int8", "--steps", "2", "--instruction", "push the plate"])
    assert not [r for r in caplog.records if r.name.startswith("onnx")], "a line for each node is no progress"
    said = capsys.readouterr().out
    for name in ("policy.onnx: differs from PyTorch by", "text.onnx: differs", "image.int8.onnx: "):
        assert f"runs/flow/onnx/{name}" in said
    tree = manifest.read(project / "runs/flow/onnx")
    assert tree["policy"]["weights_sha256"] == weights_digest(project / "runs/flow/policy")
    assert tree["policy"]["steps"] == 2 and tree["encoder"]["features"] == "grid"
    assert list(tree["instructions"]) == [exports.SEEN, "push the plate"]
    policy = OnnxPolicy.load("runs/flow/onnx")
    actions = policy.act(exports.named(exports.observation()), "push the plate")
    assert actions.shape == (4, 7) and np.isfinite(actions).all()


def test_other_weights_of_the_encoder_are_refused(project: Path) -> None:
    tower = load_model(replace(tiny.PARAMS, seed=1))
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, "other.safetensors", {"activation": "gelu"})
    with pytest.raises(DataError, match=r"weights_sha256: '\w{64}' in the policy, '\w{64}' here"):
        export_onnx.main(["--encoder-weights", "other.safetensors"])
    assert not (project / "runs/flow/onnx").exists()
