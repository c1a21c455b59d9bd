"""Every head and network as a graph: what ONNX Runtime gives is what PyTorch gives, and nothing else is published."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from pipeline.encode.clip import ClipEncoder
from pipeline.errors import DataError, PipelineError
from pipeline.inference import export as exporting
from pipeline.inference import manifest
from pipeline.inference.export import check, export, write_graph
from pipeline.inference.graph import UnrolledPolicy, act
from pipeline.policy.settings import HeadName, NetworkName
from tests import base
from tests.inference import exports

pytestmark = pytest.mark.slow
BOUNDED = {"standardise_actions": False}
EVERY: list[dict[str, Any]] = [
    {"head": "flow", "head_network": "mlp"},
    {"head": "flow", "head_network": "residual", "sampling_steps": 4},
    {"head": "diffusion", "head_network": "mlp", **BOUNDED},
    {"head": "diffusion", "head_network": "residual", "sampling_steps": 5, **BOUNDED},
    {"head": "l1"},
    {"head": "l2"},
    {"head": "cvae"},
    {"head": "tokens", **BOUNDED},
    {"sampling_steps": 1, "n_obs_steps": 3, "proprio": ("gripper", "joint_pos"), "patches": 9, "features": "grid"},
    {"sampling_steps": 50, "horizon": 1, "n_action_steps": 1, "proprio": (), "cameras": ("a", "b")},
]


def name_of(changes: dict[str, Any]) -> str:
    return " ".join(str(value) for value in changes.values())


def test_every_head_and_network_is_among_them() -> None:
    assert {case.get("head", "flow") for case in EVERY} == set(get_args(HeadName))
    for head in ("flow", "diffusion"):
        assert {case["head_network"] for case in EVERY if case.get("head") == head} == set(get_args(NetworkName))


@pytest.mark.parametrize("changes", EVERY, ids=name_of)
def test_a_graph_gives_what_the_network_gives(changes: dict[str, Any], tmp_path: Path) -> None:
    network = exports.network(base.architecture(**changes))
    steps = network.arch.sampling_steps
    graph, path = UnrolledPolicy(network, steps), tmp_path / "policy.onnx"
    about = write_graph(path, graph, {"whose": "mine"})
    assert ("noise" in about["inputs"]) == (network.arch.head not in ("l1", "l2", "tokens"))
    assert all(each["shape"][0] == "batch" for each in (*about["inputs"].values(), *about["outputs"].values()))
    assert [p.name for p in tmp_path.iterdir()] == ["policy.onnx"], "weights are in the file"
    found = check(path, graph, lambda inputs: act(network, inputs, steps), network.limits)
    assert set(found["at_batch"]) == {1, 3, 5} and found["max_difference"] <= 1e-5
    assert found["share_clipped"] < 0.5, "clipped actions would hide a difference"
    session = ort.InferenceSession(path.read_bytes())
    assert session.get_modelmeta().custom_metadata_map == {"whose": "mine"}
    # By hand, at a batch that nothing was traced or checked with; and every input matters.
    inputs = graph.examples(7, 5)
    run = {name: x.numpy() for name, x in inputs.items()}
    (actions,) = session.run(None, run)
    images, proprio = ({name: inputs[name] for name in part} for part in (network.arch.cameras, network.arch.proprio))
    noise = inputs.get("noise", torch.zeros(7, network.arch.horizon, 7))
    wanted = network.act(images, inputs["text"], proprio, noise)
    np.testing.assert_allclose(actions, wanted.numpy(), rtol=0, atol=1e-5)
    for name, value in run.items():
        (moved,) = session.run(None, {**run, name: np.random.default_rng(0).normal(size=value.shape).astype("f4")})
        assert np.abs(moved - actions).max() > 1e-4, f"{name} does nothing"


def test_the_steps_share_what_the_condition_adds(tmp_path: Path) -> None:
    """At 10 steps the condition is read once: as many multiplications as at 1 step, and three a step for the rest."""
    network = exports.network(base.architecture(head_layers=2))
    counts = []
    for steps in (1, 4):
        write_graph(tmp_path / "policy.onnx", UnrolledPolicy(network, steps), {})
        nodes = onnx.load(str(tmp_path / "policy.onnx")).graph.node
        counts.append(sum(node.op_type in ("Gemm", "MatMul") for node in nodes))
    assert counts[1] - counts[0] == 3 * 3


def test_another_policys_graph_is_not_published(clip: ClipEncoder, tmp_path: Path, monkeypatch: Any) -> None:
    bundle = exports.policy(clip, tmp_path / "policy", head="l1")
    good = UnrolledPolicy(bundle.network, 1)

    def altered(path: Path, graph: Any, metadata: Any) -> Any:
        if isinstance(graph, UnrolledPolicy):
            graph = UnrolledPolicy(exports.network(bundle.spec.architecture), 1)
            with torch.no_grad():
                list(graph.network.head.parameters())[-1].add_(1e-4)  # the last layer's bias
        return write_graph(path, graph, metadata)

    monkeypatch.setattr(exporting, "write_graph", altered)
    with pytest.raises(PipelineError, match=r"policy\.onnx: differs from PyTorch by .*more than 1e-05"):
        export(bundle, clip, [], tmp_path / "onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["policy"], "neither published nor left behind"

    def no_number(inputs: dict[str, Tensor]) -> Tensor:
        return act(bundle.network, inputs, 1) * torch.nan

    write_graph(tmp_path / "p.onnx", good, {})
    with pytest.raises(PipelineError, match="differs from PyTorch by nan"):
        check(tmp_path / "p.onnx", good, no_number, bundle.network.limits)


def test_another_encoder_is_refused(clip: ClipEncoder, tmp_path: Path) -> None:
    bundle = exports.policy(clip, tmp_path / "policy", head="l1")
    other = replace(bundle, spec=replace(bundle.spec, encoder={**clip.identity, "weights_sha256": "0" * 64}))
    with pytest.raises(DataError, match=r"another encoder's features \(weights_sha256: '0{64}' in the p"):
        export(other, clip, [], tmp_path / "onnx")
    turned = replace(bundle, spec=replace(bundle.spec, transform="half-turn/v0"))
    with pytest.raises(DataError, match=r"images of transform 'half-turn/v0'; this code makes"):
        export(turned, clip, [], tmp_path / "onnx")


def test_the_manifest_says_what_was_written(exported: Path) -> None:
    tree = manifest.read(exported / "onnx")
    names = {"policy.onnx", "image.onnx", "image.int8.onnx", "text.onnx", "merges.txt"}
    assert set(tree["files"]) == names == {p.name for p in (exported / "onnx").iterdir()} - {"export.json"}
    assert list(tree["instructions"]) == [exports.SEEN]
    assert tree["files"]["policy.onnx"]["inputs"]["noise"] == {"shape": ["batch", 4, 7], "dtype": "float32"}
    assert tree["files"]["image.onnx"]["inputs"]["frames"] == {"shape": ["batch", 32, 32, 3], "dtype": "uint8"}
    assert max(found["max_difference"] for found in tree["checks"].values()) <= 1e-5
    assert tree["int8"]["cosine_to_fp32"]["min"] > 0.99
    for name in names - {"merges.txt"}:
        model = onnx.load(str(exported / "onnx" / name))
        metadata = {each.key: each.value for each in model.metadata_props}
        assert metadata[manifest.BUNDLE_KEY] == tree["policy"]["weights_sha256"]
        assert metadata[manifest.ENCODER_KEY] == tree["encoder"]["weights_sha256"]
        assert model.opset_import[0].version >= 18
