"""Benchmarks run, on tiny sizes, and write what their documents quote.

Not among them: benchmarks.peers, which takes LeRobot in an environment of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import embed, encoders, expert, gpu, latency, policy, read, render, scale, serve, suites, train
from benchmarks import eval as evaluate
from pipeline.encode.clip import ClipEncoder
from pipeline.encode.preprocess import TRANSFORM_ID
from pipeline.libero.installation import picture_identity
from pipeline.policy.bundle import PolicySpec, save
from pipeline.policy.network import Architecture, PolicyNetwork
from tests import base
from tests.encode import tiny
from tests.imports import ROOT
from tests.scenes.made import write_store

pytestmark = pytest.mark.slow
PARAMS = str(ROOT / "params.yaml")


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a benchmark's main(); return what it wrote."""
    out = tmp_path / "result.json"

    def run(main: Callable[[list[str]], None], *argv: str) -> dict[str, Any]:
        threads = torch.get_num_threads()
        main([*argv, "--out", str(out)])
        torch.set_num_threads(threads)
        return json.loads(out.read_text())

    return run


@pytest.mark.sim
def test_suites(measured: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "suites.md"
    page.write_text(f"before\n{suites.BEGIN}old\n{suites.END}after\n")
    tasks = ("--suites", "libero_goal", "--tasks", "0", "5", "--workers", "2")
    result = measured(suites.main, *tasks, "--page", str(page))
    assert [(row["suite"], row["task"]) for row in result["tasks"]] == [("libero_goal", 0), ("libero_goal", 5)]
    (summary,) = result["suites"]
    assert summary["tasks"] == 2
    assert 200 < summary["resident_mb_max"] <= summary["peak_mb_max"] <= 900
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"| libero_goal | 2 | {summary['build_s']} |" in text
    assert "| libero_goal 5 |" in text


@pytest.mark.sim
def test_render(measured: Callable[..., dict[str, Any]]) -> None:
    found = measured(render.main, "--suites", "libero_object", "--images", "1")["libero_object"]
    assert found["full_over_fast"] > 1 or "llvmpipe" not in found["renderer"]
    for camera in ("agentview", "eye_in_hand"):
        assert 0 < found["fast_difference"][camera] < 6
        assert 0 < found["texture_difference"][camera] < 2


@pytest.mark.sim
def test_expert(measured: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where it keeps episodes
    result = measured(expert.main, "--params", PARAMS, "--tasks", "0", "--rows", "1")
    assert (result["successes"], result["n"], result["rows"]) == (1, 1, [0, 0])
    assert 60 < result["per_task"][0]["mean_steps"] < 160


@pytest.mark.sim
def test_eval(measured: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    params = base.params()
    encoder = ClipEncoder(params.embed.encoder)
    data = {"sim": picture_identity(params.sim), "tasks": {"libero_spatial": [0]}}
    arch = Architecture.of(params.policy, encoder.dim, encoder.dim)
    save(
        tmp_path / "policy",
        PolicyNetwork(arch),
        PolicySpec(arch, encoder.identity, "none", None, TRANSFORM_ID, data, {}),
    )
    settings = tmp_path / "params.yaml"
    settings.write_text(json.dumps(base.tree()))
    sizes = ("--steps", "8", "--episodes", "1", "--rounds", "1", "--worker-episodes", "2")
    result = measured(evaluate.main, "--params", str(settings), "--policy", str(tmp_path / "policy"), *sizes)
    rates = result["control_steps_per_s"]
    assert set(rates) == {"libero_full", "gymnasium_full", "engine_full", "gymnasium_fast", "engine_fast"}
    assert rates["engine_fast"] > rates["libero_full"]
    assert result["one_worker_steps_per_s"] > 0 and result["two_over_one"] > 0
    assert result["two_workers_and_policy_process_steps_per_s"] > 0


def test_embed(measured: Callable[..., dict[str, Any]]) -> None:
    result = measured(embed.main, "--quick")
    assert set(result["encoders"]) == {"ViT-B-32", embed.SMALLEST}
    for found in result["encoders"].values():
        assert 0 < found["share_of_bare"] < 1.5
    assert result["memory"]["ratio"] < 1.5, "four times as many frames take no more memory"


def test_read(measured: Callable[..., dict[str, Any]]) -> None:
    result = measured(read.main, "--rows", "4096", "--rounds", "1")
    assert result["bytes"] == 4096 * sum(field.row_bytes for field in read.FIELDS)
    assert all(rate > 0 for way in result["gb_per_s"].values() for rates in way.values() for rate in rates)


def test_scale(measured: Callable[..., dict[str, Any]]) -> None:
    result = measured(scale.main, "--rows", "70000")
    assert (result["rows"], result["episodes"], result["shards_per_array"]) == (70_000, 547, 2)
    assert set(result["phases"]) == {"imports", "plan", "build", "verify", "open", "read", "stream"}


def test_train(measured: Callable[..., dict[str, Any]]) -> None:
    result = measured(train.main, "--rows", "512", "--rounds", "1", "--model", "ViT-S-32")
    assert set(result["samples_per_s"]) == {"bare", "compiled", "resident", "streaming"}
    assert result["cached_times_online"] > 2


def test_serve(measured: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    settings = tmp_path / "params.yaml"
    settings.write_text(json.dumps(base.tree()))
    sizes = ("--clients", "1", "3", "--requests", "6", "--device", "cpu")
    result = measured(serve.main, "--params", str(settings), *sizes)
    one, three = result["clients"]
    assert (one["requests"], one["batch"], three["requests"]) == (6, 1.0, 6)
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["per_s"] > 0 for row in (one, three))
    assert 1 <= three["batch"] <= 3 and 0 < one["overhead_ms"] < one["p99_ms"] and result["direct_ms"] > 0


def test_policy(measured: Callable[..., dict[str, Any]]) -> None:
    result = measured(policy.main, "--repeat", "3", "--rounds", "1", "--only", "reference", "diffusion, mlp", "l1")[
        "policies"
    ]
    assert result["reference"]["parameters"] == pytest.approx(4.3e6, rel=0.05)
    assert set(result["reference"]["eager_ms"]) == {str(n) for n in policy.STEPS} and set(result["l1"]["eager_ms"]) == {
        "1"
    }


def test_encoders(measured: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "scenes.zarr", 4, monkeypatch)
    name = "own, random weights"
    result = measured(encoders.main, "--scenes", str(tmp_path / "scenes.zarr"), "--only", name)
    assert (result["fitted_on"], result["states"]) == (48, {"known scenes": 16})
    found = result["encoders"][name]
    assert found["images_per_s"] > 0
    assert set(found["known scenes"]["probe"]) == {"pooled", "patch tokens"}
    spatial = found["instructions in words held out"]["libero_spatial"]
    assert spatial["n"] == 30 and 0 <= spatial["right"] < 15, "of random weights"
    told = found["known scenes"]["words held out"]["one_relation_changed"]
    assert 0 <= told["wilson_low"] <= told["rate"] == told["right"] / told["n"] <= told["wilson_high"]


def test_latency(measured: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    tiny.register(tmp_path)
    one, *_ = latency.POLICIES
    sizes = ("--model", tiny.MODEL, "--repeat", "3", "--images", "2", "--steps", "1", "10")
    result = measured(latency.main, *sizes, "--only", one, latency.QUICKSTART)
    for ways in result["head"][one].values():
        assert set(ways) == {"eager", "compiled", "ONNX Runtime"}
    whole = result["image_to_action"][one]
    assert set(whole) == set(result["image_to_action"][latency.QUICKSTART])
    assert set(whole) == {"eager", "ONNX Runtime fp32", "ONNX Runtime int8"} == set(result["encoder"]) - {"compiled"}
    for found in (*whole.values(), *result["encoder"].values()):
        assert 0 < found["min"] <= found["median"] <= found["p95"] <= found["p99"]
    medians = result["limits_ms"]["head, 10 steps, ONNX Runtime"]["medians"]
    heads = result["head"]
    assert medians == {name: heads[name]["10"]["ONNX Runtime"]["median"] for name in (one, latency.QUICKSTART)}


def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a GPU it says so; what a part measured, or why it failed, is kept."""
    out = tmp_path / "gpu.json"
    if not torch.cuda.is_available():
        assert gpu.main(["--out", str(out)]) == 1 and not out.exists()
        assert "torch finds no GPU here" in capfd.readouterr().err
    assert gpu.run([*gpu.PARTS["tests"], "tests/inference/test_graphed.py"])["ok"]
    measured = gpu.run(["benchmarks.policy", "--only", "reference", "--repeat", "3", "--rounds", "1"])
    assert measured["ok"] and measured["figures"]["policies"]["reference"]["eager_ms"]
    wrong = gpu.run(["benchmarks.policy", "--only", "none"])
    assert not wrong["ok"] and "invalid choice: 'none'" in wrong["said"]
    slow = gpu.run(gpu.PARTS["embed"], 1)
    assert not slow["ok"] and slow["said"].endswith("it took more than 1 s")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name="none", total_memory=2**30))
    monkeypatch.setattr(gpu, "run", lambda part, limit_s: {"ok": part[0] != "benchmarks.policy", "seconds": 0.1})
    assert gpu.main(["--out", str(out)]) == 1, "a part failed"
    kept = json.loads(out.read_text())["parts"]
    assert {name for name, part in kept.items() if part["ok"]} == set(gpu.PARTS) - {"policy"}
    assert gpu.main(["--only", "tests", "embed", "--out", str(out)]) == 0
